"""Structures read from files as different programs write them, and files that are refused."""

import gzip
import os

import pytest
from pdb_lines import NAMES, SEQUENCE, atom, helix, part, residue, seqres, sequences

from core import UserError
from examples.protein.structure import read_structure

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
