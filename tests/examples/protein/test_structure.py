"""Structures read from PDB and mmCIF files: residues, coordinates, chains and contacts."""

import gzip

import gemmi
import pytest
import torch
from pdb_lines import HELIX, NAMES, SEQUENCE, atom, helix, place, residue, seqres, without

from core import IGNORE, UserError
from examples.protein.structure import contact_map, read_structure


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


def test_contacts_are_nearer_than_the_cutoff(read):
    (chain,) = read(*helix())
    apart = (chain.coordinates[:, None].double() - chain.coordinates.double()).norm(dim=-1)
    assert torch.equal(contact_map(chain) == 1, apart < 8)
    assert torch.equal(contact_map(chain, cutoff=5.0) == 1, apart < 5)
