"""Structures are read as their files mean them; all files are made here, atom by atom."""

import gzip
import math
import os

import gemmi
import pytest
import torch

from core import IGNORE, UserError
from examples.protein.structure import contact_map, read_structure

# Radius, turn and rise of each atom of an alpha helix; a residue is 100 degrees and 1.5 angstrom from the one before.
HELIX = {"N": (1.55, -28, -0.9), "CA": (2.29, 0, 0), "C": (1.66, 26, 1.1), "CB": (3.3, -22, -1.0)}
NAMES = ["ALA", "GLY", "SER", "LEU", "MET", "GLU", "LYS", "TRP", "VAL", "ILE", "ASP", "THR"]
SEQUENCE = "AGSLMEKWVIDT"


def atom(name, residue, chain, number, place, code=" ", alternate=" ", occupancy=1.0, record="ATOM", element=None):
    x, y, z = place
    return (
        f"{record:<6}    1 {name:^4}{alternate}{residue:>3} {chain}{number:>4}{code}   {x:8.3f}{y:8.3f}{z:8.3f}"
        f"{occupancy:6.2f}  20.00          {element or name[0]:>2}"
    )


def place(k, name, at=(0.0, 0.0)):
    radius, turn, rise = HELIX[name]
    angle = math.radians(turn + 100 * k)
    return at[0] + radius * math.cos(angle), at[1] + radius * math.sin(angle), rise + 1.5 * k


def residue(k, name, chain="A", number=None, at=(0.0, 0.0), **how):
    number = k + 1 if number is None else number
    atoms = [a for a in HELIX if a != "CB" or name != "GLY"]
    return [atom(a, name, chain, number, place(k, a, at), **how) for a in atoms]


def helix(names=NAMES, **how):
    return [line for k, name in enumerate(names) for line in residue(k, name, **how)]


def seqres(names, chain="A"):
    rows = [names[start : start + 13] for start in range(0, len(names), 13)]
    return [f"SEQRES {k:>3} {chain} {len(names):>4}  {' '.join(row)}" for k, row in enumerate(rows, 1)]


def without(lines, *numbers):
    return [line for line in lines if line[22:26].strip() not in map(str, numbers)]


@pytest.fixture
def read(tmp_path):
    """The chains of a file of such lines; so must its mmCIF be read, whatever its name, and it gzipped."""

    def read(*lines, name=None):
        path, cif = tmp_path / "made.pdb", tmp_path / "made.cif"
        path.write_text("\n".join([*lines, "END", ""]))
        structure = gemmi.read_structure(str(path))
        structure.setup_entities()
        structure.assign_label_seq_id()
        structure.make_mmcif_document().write_file(str(cif))
        packed = tmp_path / "made.pdb.gz"
        packed.write_bytes(gzip.compress(path.read_bytes(), mtime=0))
        found = read_structure(path, name)
        misnamed = tmp_path / "made.txt"
        misnamed.write_bytes(cif.read_bytes())
        for other in (cif, packed, misnamed):
            for one, two in zip(found, read_structure(other, name), strict=True):
                assert (one.name, one.sequence, one.numbers) == (two.name, two.sequence, two.numbers)
                assert torch.equal(one.coordinates.nan_to_num(1e6), two.coordinates.nan_to_num(1e6))
        return found

    return read


def test_beta_carbons_and_of_glycine_alpha(read):
    (chain,) = read(*helix())
    assert (chain.name, chain.sequence, chain.numbers) == ("A", SEQUENCE, tuple(map(str, range(1, 13))))
    expected = [place(k, "CA" if name == "GLY" else "CB") for k, name in enumerate(NAMES)]
    torch.testing.assert_close(chain.coordinates, torch.tensor(expected), rtol=0, atol=1e-3)
    assert chain.resolved.all()
    (bare,) = read(*(line for line in helix() if " CA " in line))
    assert bare.sequence == SEQUENCE and bare.coordinates[3].tolist() == pytest.approx(place(3, "CA"), abs=1e-3)


def test_missing_residues_are_gaps(read):
    lines = without(helix(), 4, 5, 6)
    (chain,) = read(*lines)
    assert chain.sequence == "AGSXXXKWVIDT" and chain.numbers[2:7] == ("3", "", "", "", "7")
    assert chain.resolved.tolist() == [k not in (3, 4, 5) for k in range(12)]
    (chain,) = read(*seqres(["MET", "HIS", *NAMES, "HIS"]), *lines)
    assert chain.sequence == f"MH{SEQUENCE}H" and chain.numbers[:3] == ("", "", "1")
    assert chain.resolved.tolist() == [k not in (0, 1, 5, 6, 7, 14) for k in range(15)]
    found = contact_map(chain)
    known = chain.resolved[:, None] & chain.resolved
    assert (found[~known] == IGNORE).all() and set(found[known].tolist()) == {0, 1}


def test_a_side_chain_not_seen_is_its_alpha_carbon_and_a_residue_without_either_is_not_resolved(read):
    lines = [line for line in helix() if not (line[22:26].strip() == "3" and line[13:15] == "CB")]
    lines = [line for line in lines if not (line[22:26].strip() == "8" and line[13:15] in ("CA", "CB"))]
    (chain,) = read(*lines)
    assert chain.sequence == SEQUENCE and not chain.resolved[7] and chain.numbers[7] == ""
    assert chain.coordinates[2].tolist() == pytest.approx(place(2, "CA"), abs=1e-3)


def test_insertion_codes_are_residues_of_their_own_in_order(read):
    numbered = [(1, " "), (2, " "), (2, "A"), (2, "B"), (3, " "), (9, " ")]  # no gap before 9: it is bonded
    lines = [
        line
        for k, (name, (number, code)) in enumerate(zip(NAMES, numbered, strict=False))
        for line in residue(k, name, number=number, code=code)
    ]
    (chain,) = read(*lines)
    assert chain.sequence == SEQUENCE[:6] and chain.numbers == ("1", "2", "2A", "2B", "3", "9")
    assert chain.coordinates[3].tolist() == pytest.approx(place(3, "CB"), abs=1e-3)


@pytest.mark.parametrize("occupancies, chosen", [((0.3, 0.7), 1), ((0.7, 0.3), 0), ((0.5, 0.5), 0)])
def test_of_alternate_locations_the_highest_occupancy(read, occupancies, chosen):
    """Of one residue's atoms, and of two residues in one place."""
    lines = helix()
    at = next(k for k, line in enumerate(lines) if line[17:20] == "LEU" and " CB " in line)
    places = [(1.0, 2.0, 3.0), (4.0, 5.0, 6.0)]
    lines[at : at + 1] = [
        atom("CB", "LEU", "A", 4, xyz, alternate=letter, occupancy=share)
        for letter, xyz, share in zip("AB", places, occupancies, strict=True)
    ]
    first = next(k for k, line in enumerate(lines) if line[17:20] == "VAL")
    lines[first : first + 4] = [
        line
        for letter, name, share in zip("AB", ("VAL", "PHE"), occupancies, strict=True)
        for line in residue(8, name, alternate=letter, occupancy=share)
    ]
    (chain,) = read(*lines)
    assert tuple(chain.coordinates[3].tolist()) == places[chosen]
    assert chain.sequence == SEQUENCE[:8] + "VF"[chosen] + SEQUENCE[9:] and len(chain.numbers) == 12


def test_modified_residues_are_their_parents(read):
    names = ["ALA", "MSE", "SEP", "QQQ", "GLY", "QQQ"]
    modified = [["ATOM", "HETATM"][name in ("MSE", "SEP", "QQQ")] for name in names]
    lines = [
        line
        for k, (name, record) in enumerate(zip(names, modified, strict=True))
        for line in residue(k, name, record=record)
    ]
    (chain,) = read("MODRES 1ABC QQQ A    4  LYS  SOMETHING", *seqres(names), *lines, "TER")
    assert chain.sequence == "AMSKGX" and chain.resolved.all()


def test_of_several_chains_those_of_protein(read):
    water = atom("O", "HOH", "A", 101, (30, 0, 0), record="HETATM")
    ligand = atom("C1", "ATP", "B", 102, (40, 0, 0), record="HETATM")
    calcium = atom("CA", "CA", "A", 103, (50, 0, 0), record="HETATM", element="CA")
    dna = [
        atom(name, base, "D", k, (60 + 6 * k + x, 0, 0))
        for k, base in enumerate(("DA", "DC", "DG"), 1)
        for x, name in enumerate(("P", "O5'", "C5'", "C4'", "C3'", "O3'"))
    ]
    chains = [
        *helix(),
        "TER",
        *helix(NAMES[::-1], chain="B", at=(20.0, 0.0)),
        "TER",
        *dna,
        "TER",
        water,
        ligand,
        calcium,
    ]
    found = read(*chains)
    assert [(chain.name, chain.sequence) for chain in found] == [("A", SEQUENCE), ("B", SEQUENCE[::-1])]
    assert [chain.sequence for chain in read(*chains, name="B")] == [SEQUENCE[::-1]]
    with pytest.raises(UserError, match=r"has no protein chain D: there are A, B\."):
        read(*chains, name="D")
    with pytest.raises(UserError, match=r"made\.pdb has no protein chain\."):
        read(*dna)


def test_of_several_models_the_first(read):
    moved = helix(at=(9.0, 9.0))
    (chain,) = read("MODEL        1", *helix(), "ENDMDL", "MODEL        2", *moved, "ENDMDL")
    assert chain.coordinates[0].tolist() == pytest.approx(place(0, "CB"), abs=1e-3)


def test_chains_are_named_as_the_authors_did(tmp_path):
    """mmCIF has names and numbers of its own beside theirs."""
    columns = (
        "group_PDB id type_symbol label_atom_id label_alt_id label_comp_id label_asym_id label_entity_id label_seq_id"
    )
    columns += " pdbx_PDB_ins_code Cartn_x Cartn_y Cartn_z occupancy B_iso_or_equiv auth_seq_id auth_asym_id"
    rows = [
        f"ATOM {k} {a[0]} {a} . {name} Q 1 {k + 3} ? {' '.join(f'{x:.3f}' for x in place(k, a))} 1 20 {k + 70} H"
        for k, name in enumerate(NAMES)
        for a in HELIX
        if a != "CB" or name != "GLY"
    ]
    whole = ["MET", "HIS", *NAMES]
    sequence = [f"1 {k} {name}" for k, name in enumerate(whole, 1)]
    lines = ["data_made", "loop_", "_entity.id", "_entity.type", "1 polymer", "loop_"]
    lines += ["_entity_poly.entity_id", "_entity_poly.type", "1 polypeptide(L)", "loop_"]
    lines += [f"_entity_poly_seq.{column}" for column in ("entity_id", "num", "mon_id")] + sequence + ["loop_"]
    lines += [f"_atom_site.{column}" for column in columns.split()] + rows
    (tmp_path / "made.cif").write_text("\n".join([*lines, "#", ""]))
    (chain,) = read_structure(tmp_path / "made.cif")
    assert (chain.name, chain.sequence) == ("H", f"MH{SEQUENCE}")
    assert chain.numbers == ("", "", *map(str, range(70, 82)))


def part(names, start=0, number=1, chain="A", at=(0.0, 0.0), segment="    "):
    lines = [
        line for k, name in enumerate(names) for line in residue(k + start, name, chain=chain, number=number + k, at=at)
    ]
    return [f"{line[:72]}{segment}{line[76:]}" for line in lines]


def sequences(tmp_path, lines, name="made.pdb"):
    """Of what stands in such a file, and in it packed, with other line ends, and behind a byte order mark."""
    text = "\n".join([*lines, *(["END"] if name.endswith("pdb") else []), ""])
    found = []
    for number, content in enumerate(
        (
            text.encode(),
            gzip.compress(text.encode(), mtime=0),
            text.replace("\n", "\r\n").encode(),
            text.encode("utf-8-sig"),
        )
    ):
        (tmp_path / f"{number}{name}").write_bytes(content)
        found.append([(chain.name, chain.sequence) for chain in read_structure(tmp_path / f"{number}{name}")])
    assert found[1:] == found[:-1]
    return found[0]


FORCE_FIELDS = {
    "R": "ARN",
    "D": "ASH",
    "C": "CYX CYM CYH",
    "E": "GLH",
    "H": "HID HIE HIP HSD HSE HSP",
    "K": "LYN LYP LSN",
    "M": "MSE",
    "S": "SEP S1P",
    "T": "TPO T1P",
    "Y": "PTR Y1P TYM",
}
LONG = {
    "A": "NALA CALA",
    "D": "ASPP ASPH",
    "E": "GLUP GLUH",
    "H": "HISD HISE HISH NHIE CHID",
    "K": "LYSH",
    "C": "CYS2 CYSH NCYX",
    "R": "ARGN",
}


def test_residues_as_force_fields_name_them_are_their_own(tmp_path):
    letters, names = zip(*((letter, name) for letter, row in FORCE_FIELDS.items() for name in row.split()), strict=True)
    assert sequences(tmp_path, helix(names)) == [("A", "".join(letters))]
    assert sequences(tmp_path, helix(names, record="HETATM")) == [("A", "".join(letters))]
    assert sequences(tmp_path, [*seqres(["HIS", *names]), *helix(names)]) == [("A", "H" + "".join(letters))]
    homoserine = ["MODRES 1ABC HSE A    1  SER  L-HOMOSERINE", *helix(["HSE", *NAMES])]
    assert sequences(tmp_path, homoserine) == [("A", f"S{SEQUENCE}")]


@pytest.mark.parametrize("chain", ["A", " "])
def test_names_of_four_letters_are_not_cut(chain, tmp_path):
    letters, names = zip(*((letter, name) for letter, row in LONG.items() for name in row.split()), strict=True)
    lines = [f"{line[:17]}{name}{line[21:]}" for k, name in enumerate(names) for line in residue(k, "ALA", chain=chain)]
    assert sequences(tmp_path, [*lines, *part(NAMES, start=len(names), number=len(names) + 1, chain=chain)]) == [
        (chain.strip(), "".join(letters) + SEQUENCE)
    ]
    lipids = [
        f"{line[:17]}{name}{line[21:]}" for name in ("POPC", "TIP3") for line in helix(["LIG"] * 2, at=(60.0, 0.0))
    ]
    assert sequences(tmp_path, [*lines, *lipids]) == [(chain.strip(), "".join(letters))]
    cut = [*residue(0, "NME", chain=chain), *part(NAMES, start=1, number=2, chain=chain)]  # GROMACS' NMET without its T
    assert sequences(tmp_path, cut) == [(chain.strip(), f"X{SEQUENCE}")]
    two = [f"{line[:20]}DA{line[22:]}" for line in helix(["HIS", "ASP", *NAMES])]  # chain DA, not HISD in chain A
    assert sequences(tmp_path, two) == [("DA", f"HD{SEQUENCE}")]


@pytest.mark.parametrize("record", ["ATOM", "HETATM"])
def test_caps_water_ions_and_ligands_are_no_residues(record, tmp_path):
    caps = [
        [atom(name, "ACE", "A", 0, (x, 9, 9), record=record) for x, name in enumerate(("CH3", "C", "O"))],
        [atom(name, "NME", "A", 13, (x, 9, 30), record=record) for x, name in enumerate(("N", "C"))],
    ]
    others = [
        atom(name, monomer, "A", 100 + k, (40 + 3 * k, 0, x), record=record)
        for k, monomer in enumerate(("HOH", "SOL", "TIP", "NA", "POP", "LIG"))
        for x, name in enumerate(("O1", "C1", "N1"))
    ]
    for lines in (
        [*caps[0], *helix(), *caps[1], "TER", *others],
        [*caps[0], *helix(), *caps[1], *others],
        [*others, *caps[0], *helix(), *caps[1]],
        [*seqres(["ACE", *NAMES, "NME"]), *caps[0], *helix(), *caps[1], "TER", *others],
        [*seqres(["ACE", *NAMES, "NH2"]), *helix(), "TER", *others],
    ):
        assert sequences(tmp_path, lines) == [("A", SEQUENCE)]
    with pytest.raises(UserError, match="has no protein chain"):
        sequences(tmp_path, others)


@pytest.mark.parametrize("chain", ["A", " "])
@pytest.mark.parametrize("number", [1, 13, 40])
def test_what_a_ter_parts_are_chains_of_their_own(chain, number, tmp_path):
    first, second = part(NAMES, chain=chain), part(NAMES[::-1], number=number, chain=chain, at=(20.0, 0.0))
    expected = [(chain.strip(), SEQUENCE), (chain.strip(), SEQUENCE[::-1])]
    for ter in ("TER", "TER   ", f"TER      49      THR {chain}  12"):
        assert sequences(tmp_path, [*first, ter, *second]) == expected
        assert sequences(tmp_path, [*first, ter, *second, ter, atom("O", "HOH", chain, 99, (50, 0, 0))]) == expected
    free = residue(40, "GLU", chain=chain, number=99, record="HETATM")  # a ligand, not a chain
    assert sequences(tmp_path, [*first, "TER", *second, "TER", *free]) == expected
    other = part(NAMES[:5], chain="B", at=(40.0, 0.0))
    assert sequences(tmp_path, [*first, "TER", *other, "TER", *second]) == [expected[0], ("B", "AGSLM"), expected[1]]
    path = tmp_path / "0made.pdb"
    assert [c.sequence for c in read_structure(path, chain.strip())] == [SEQUENCE, SEQUENCE[::-1]]
    ends = [atom("OXT", "THR", chain, 12, (0, 0, 30))]
    same = [*seqres(["MET", *NAMES], chain), *first, *ends, "TER", *part(NAMES, chain=chain, at=(20.0, 0.0)), "TER"]
    assert sequences(tmp_path, same) == [(chain.strip(), f"M{SEQUENCE}")] * 2


def test_chains_without_a_ter_are_parted_by_their_signs(tmp_path):
    """By segments (CHARMM), by numbers that begin anew, by the last oxygen; but not where the peptide bond goes on."""
    expected = [("", SEQUENCE), ("", SEQUENCE[::-1])]
    far = {"chain": " ", "at": (20.0, 0.0)}
    segments = [*part(NAMES, chain=" ", segment="PROA"), *part(NAMES[::-1], number=13, segment="PROB", **far)]
    anew = [*part(NAMES, chain=" "), *part(NAMES[::-1], number=1, **far)]
    oxygen = [*part(NAMES, chain=" "), atom("OXT", "THR", " ", 12, (0, 0, 30)), *part(NAMES[::-1], number=13, **far)]
    for lines in (segments, anew, oxygen):
        assert sequences(tmp_path, lines) == expected
    permuted = [*part(NAMES[:6], number=51), *part(NAMES[6:], start=6, number=1)]
    assert sequences(tmp_path, permuted) == [("A", SEQUENCE)]
    gap = [*seqres(NAMES), *part(NAMES[:4], number=51), *part(NAMES[8:], start=8, number=1)]
    assert sequences(tmp_path, gap) == [("A", SEQUENCE)]


def test_numbers_of_any_kind(tmp_path):
    for written, expected in (
        ("  -3   -2   -1    0    1 ", ("-3", "-2", "-1", "0", "1")),
        ("   1    2B   2A   2    3 ", ("1", "2B", "2A", "2", "3")),
        ("9998 9999 A000 A001 A002 ", ("9998", "9999", "10000", "10001", "10002")),  # hybrid-36
    ):
        lines = [
            f"{line[:22]}{written[5 * k : 5 * k + 5]}{line[27:]}"
            for k, name in enumerate(NAMES[:5])
            for line in residue(k, name)
        ]
        assert sequences(tmp_path, lines) == [("A", SEQUENCE[:5])]
        assert read_structure(tmp_path / "0made.pdb")[0].numbers == expected


def cif(lines, head=("data_made",)):
    """The atoms of PDB lines, without a word about what they are of."""
    columns = "group_PDB id type_symbol label_atom_id label_alt_id label_comp_id label_asym_id label_entity_id"
    columns += (
        " label_seq_id pdbx_PDB_ins_code Cartn_x Cartn_y Cartn_z occupancy B_iso_or_equiv auth_seq_id auth_asym_id"
    )
    rows = [
        f"{line[:6]} {k} {line[76:].strip()} {line[12:16]} . {line[17:20]} {line[21]} ? . ? {line[30:54]} 1 20 "
        f"{line[22:26]} {line[21]}"
        for k, line in enumerate(lines)
    ]
    return [*head, "loop_", *(f"_atom_site.{column}" for column in columns.split()), *rows, "#"]


def test_mmcif_as_programs_write_it(tmp_path):
    ion = atom("NA", "NA", "A", 301, (30, 0, 0), record="HETATM")
    water = atom("O", "HOH", "A", 302, (40, 0, 0), record="HETATM")
    assert sequences(tmp_path, cif([ion, water, *helix()]), "made.cif") == [("A", SEQUENCE)]
    assert sequences(tmp_path, [line.replace(" ALA ", " NALA ") for line in cif(helix())], "a.cif") == [("A", SEQUENCE)]
    columns = (
        "id type_symbol label_atom_id label_alt_id label_comp_id label_asym_id label_seq_id Cartn_x Cartn_y Cartn_z"
    )
    rows = [f"{k} C CA . {name} A {k + 89} {k * 3.8} 0 0" for k, name in enumerate(NAMES)]
    least = ["data_made", "loop_", *(f"_atom_site.{column}" for column in columns.split()), *rows]
    assert sequences(tmp_path, least, "made.cif") == [("A", SEQUENCE)]
    comp = ["data_comp_ALA", "_chem_comp.id ALA", *cif(helix())]
    assert sequences(tmp_path, comp, "made.cif") == [("A", SEQUENCE)]
    assert sequences(tmp_path, ["# made by hand", "", *cif(helix(), head=["DATA_made"])], "a.cif") == [("A", SEQUENCE)]
    long = [line[:-1] + "Heavy" if line.startswith("ATOM") else line for line in cif(helix())]
    assert sequences(tmp_path, long, "made.cif") == [("Heavy", SEQUENCE)]
    (tmp_path / "nan.cif").write_text("\n".join([*cif(helix()), ""]).replace("  -1.000", "  ?"))
    (chain,) = read_structure(tmp_path / "nan.cif")
    assert chain.sequence == SEQUENCE and chain.numbers[0] == "" and not chain.resolved[0]


def test_contacts_are_nearer_than_the_cutoff(read):
    (chain,) = read(*helix())
    apart = (chain.coordinates[:, None].double() - chain.coordinates.double()).norm(dim=-1)
    assert torch.equal(contact_map(chain) == 1, apart < 8)
    assert torch.equal(contact_map(chain, cutoff=5.0) == 1, apart < 5)


@pytest.mark.parametrize(
    "name, content, sentence",
    [
        ("words.pdb", b"A protein, they said.\n", "words.pdb is not a structure: it has no atoms"),
        ("picture.pdb", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "picture.pdb is not a structure"),
        ("list.json", b'{"a": [1, 2]}', "list.json is not a structure that can be read (PDB or mmCIF)"),
        ("header.pdb", b"HEADER    A PROTEIN\nEND\n", "it has no atoms in the format of PDB or mmCIF"),
        ("empty.cif", b"", "empty.cif is empty"),
        ("no.cif", b"data_x\n_cell.length_a 3\n", "no.cif is not a structure: it has no atoms"),
        (
            "cut.cif",
            b"data_x\nloop_\n_atom_site.id\n_atom_site.x\n1 2 3\n",
            "cut.cif is not a structure that can be read",
        ),
        ("cut.pdb", "\n".join(helix()).encode()[:430], "cut.pdb is not a structure that can be read"),
        (
            "odd.pdb",
            "\n".join(helix()).replace("  -1.000", "********").encode(),
            "odd.pdb, line 4: an atom cannot be at",
        ),
        (
            "nan.pdb",
            "\n".join(helix()).replace("  -1.000", "     nan").encode(),
            "nan.pdb, line 4: an atom cannot be at",
        ),
        ("broken.pdb.gz", gzip.compress(b"ATOM", mtime=0)[:-6], "broken.pdb.gz cannot be unpacked"),
        ("folder", "folder", "is a directory, not a structure"),
        ("pipe.pdb", "pipe", "pipe.pdb is a pipe, socket or device, not a structure"),
        ("packed.pdb.gz", b"not packed", "packed.pdb.gz is not a structure"),
        ("none.pdb", None, "There is no structure"),
    ],
)
def test_what_is_no_structure_gets_one_sentence(tmp_path, name, content, sentence):
    if content == "folder":
        (tmp_path / name).mkdir()
    elif content == "pipe":
        os.mkfifo(tmp_path / name)
    elif content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError) as error:
        read_structure(tmp_path / name)
    assert sentence in str(error.value) and "\n" not in str(error.value) and str(error.value).endswith(".")
