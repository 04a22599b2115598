"""Protein chains from PDB and mmCIF files, and which of their residues touch."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from core import IGNORE, UserError

from .inputs import read_unpacked

if TYPE_CHECKING:
    import gemmi

UNKNOWN = "X"
NAMELESS = " "  # a chain without a name, while gemmi works on it: it finds no SEQRES for an empty one
CAPS = ("ACE", "FOR", "NH2", "NHE", "NME")  # they end a chain, but are no amino acids
ENDS = ("OXT", "OT2", "OC2")  # the second oxygen of the last residue
# Names that say how a residue is protonated or bonded: of AMBER's leaprc files (ff14SB, constant pH), CHARMM36's
# top_all36_prot.rtf, and GROMACS' residuetypes.dat (OPLS, GROMOS).
VARIANTS = {
    "ALA": "",
    "ARG": "ARN ARGN",
    "ASN": "ASN1",
    "ASP": "ASH AS4 ASP1 ASPH ASPP",
    "CYS": "CYM CYX CYH CYS1 CYS2 CYSH",
    "GLN": "",
    "GLU": "GLH GL4 GLUH GLUP",
    "GLY": "",
    "HIS": "HID HIE HIP HSD HSE HSP HIS1 HIS2 HISA HISB HISD HISE HISH HISP",
    "ILE": "",
    "LEU": "",
    "LYS": "LYN LYP LSN LYSH",
    "MET": "",
    "PHE": "PHEU",
    "PRO": "",
    "SER": "S1P",
    "THR": "T1P",
    "TRP": "TRPU",
    "TYR": "TYM TYRU Y1P",
    "VAL": "",
}
STANDARD = {variant: name for name, variants in VARIANTS.items() for variant in variants.split()}
STANDARD |= {  # of the first and last residue, in AMBER
    f"{end}{variant}": STANDARD.get(variant, variant)
    for variant in [*VARIANTS, *STANDARD]
    for end in "NC"
    if len(variant) == 3
}


@dataclass(frozen=True)
class ProteinChain:
    """All residues that the chain was made of, also those that the experiment did not see."""

    name: str
    """As the authors named it (mmCIF: auth_asym_id)."""
    sequence: str
    """One letter a residue; a modified one is its parent (MSE: M), X one that is not known."""
    numbers: tuple[str, ...]
    """The authors' number of each residue with its insertion code (52A); empty where not resolved."""
    coordinates: Float[Tensor, "n 3"]
    """Of the beta carbon, of the alpha carbon where there is none (glycine); angstrom, NaN where not resolved."""

    @property
    def resolved(self) -> Bool[Tensor, "n"]:
        return self.coordinates.isfinite().all(dim=1)


def contact_map(chain: ProteinChain, cutoff: float = 8.0) -> Float[Tensor, "n n"]:
    """1 where the beta carbons of two residues are nearer than `cutoff` (angstrom), 0 where not, IGNORE where one is
    not resolved (CASP: Monastyrskyy et al. 2014)."""
    # Squared by hand: cdist by matrix products loses the digits that a cutoff needs.
    near = (chain.coordinates[:, None] - chain.coordinates).square().sum(dim=-1) < cutoff**2
    known = chain.resolved[:, None] & chain.resolved
    return near.float().where(known, float(IGNORE))


def read_structure(path: Path, name: str | None = None) -> list[ProteinChain]:
    """The protein chains of a PDB or mmCIF file (may be gzipped), or those of the name; of several models the first.

    In PDB files what a TER parts is another chain, also under the same name; and in those without SEQRES, what differs
    in its segment, or is not bonded and numbered anew, or behind an end of a chain (OXT). Caps (ACE, NME), water,
    ligands and ions are no residues.

    Sequences are those of SEQRES or entity_poly_seq; in a file without, those of the residues resolved, with an X for
    each number left out between two that are not bonded. Of alternate locations the one of highest occupancy counts,
    the first of equal ones.
    """
    structure = _read(path)
    found = [
        _chain(structure, chain.name.strip(), span)
        for chain in structure[0]
        for span in chain.subchains()
        if _is_protein(span)
    ]
    if not found:
        raise UserError(f"{path} has no protein chain.")
    if name is None:
        return found
    if chosen := [chain for chain in found if chain.name == name]:
        return chosen
    names = ", ".join(dict.fromkeys(chain.name or "(without a name)" for chain in found))
    raise UserError(f"{path} has no protein chain {name}: there are {names}.")


def _read(path: Path) -> "gemmi.Structure":
    try:
        import gemmi
    except ImportError:
        raise UserError('Structures need the package gemmi: pip install -e ".[protein]".') from None
    text = read_unpacked(path, "structure")
    if not text:
        raise UserError(f"{path} is empty.")
    content = next((line for line in text.split("\n") if line.strip() and not line.startswith("#")), "").lstrip()
    is_pdb = not content.lower().startswith(("data_", "{"))
    lines = _standard_lines(path, text) if is_pdb else []
    try:
        if is_pdb:
            structure = gemmi.read_pdb_string("\n".join(lines), split_chain_on_ter=True)
        else:
            document = gemmi.cif.read_mmjson_string(text) if content[0] == "{" else gemmi.cif.read_string(text)
            blocks = [block for block in document if block.find_loop("_atom_site.Cartn_x")]
            structure = gemmi.make_structure_from_block(blocks[0] if blocks else document[0])
        has_atoms = len(structure) and structure[0].count_atom_sites()
        _standard_names(structure)
        if has_atoms and (is_pdb or not structure.entities):
            _part_chains(structure)
        structure.setup_entities()
        structure.assign_label_seq_id()
    except Exception as error:  # of many kinds, down to IndexError
        reason = " ".join(str(error).split()).rstrip(".:")
        raise UserError(f"{path} is not a structure that can be read (PDB or mmCIF): {reason}.") from None
    if not has_atoms:
        raise UserError(f"{path} is not a structure: it has no atoms in the format of PDB or mmCIF.")
    return structure


def _standard_lines(path: Path, text: str) -> list[str]:
    """Lines of a PDB file. gemmi takes coordinates that are no numbers for 0, and the fourth letter of a residue's name
    for a chain's."""
    lines = text.split("\n")
    sites = [number for number, line in enumerate(lines) if line.startswith(("ATOM  ", "HETATM")) and len(line) >= 54]
    for number in sites:
        line = lines[number]
        try:
            places = float(line[30:38]), float(line[38:46]), float(line[46:54])
        except ValueError:
            places = (math.nan,)
        if not all(map(math.isfinite, places)):
            raise UserError(f"{path}, line {number + 1}: an atom cannot be at {line[30:54].strip()}.")
    long = {lines[number][17:21] for number in sites if lines[number][20:21].strip()}
    if not any(name[:3] in VARIANTS and name not in STANDARD for name in long):  # else chains' names have two letters
        for number in sites:
            if (name := lines[number][17:21]) in STANDARD:
                lines[number] = f"{lines[number][:17]}{STANDARD[name]} {lines[number][21:]}"
    return lines


def _standard_names(structure: "gemmi.Structure") -> None:
    """Residues as the force field names them get their own names, unless the file says what they are."""
    said = {modified.res_id.name for modified in structure.mod_residues}
    names = {name for model in structure for name in model.get_all_residue_names()}
    names |= {name for entity in structure.entities for name in entity.full_sequence}
    for name in names & STANDARD.keys() - said:
        structure.rename_residues(name, STANDARD[name])


def _part_chains(structure: "gemmi.Structure") -> None:
    """Of the first model, where the file does not say what it is made of: chains of one molecule each, of nothing but
    residues."""
    import gemmi

    structure.rename_chain("", NAMELESS)
    for entity in structure.entities:
        entity.name = entity.name or NAMELESS
    known = {entity.name for entity in structure.entities if entity.full_sequence}
    model = gemmi.Model(structure[0].num)
    seen: set[str] = set()
    for chain in structure[0]:
        residues = [residue for residue in chain if _is_residue(residue)]
        if not residues or (chain.name in seen and all(residue.het_flag == "H" for residue in residues)):
            continue  # behind its TER, a chain has ligands
        seen.add(chain.name)
        part = model.add_chain(gemmi.Chain(chain.name))
        part.add_residue(residues[0])
        for before, residue in pairwise(residues):
            if chain.name not in known and _is_parted(before, residue):
                part = model.add_chain(gemmi.Chain(chain.name))
            part.add_residue(residue)
    del structure[0:]
    structure.add_model(model)


def _is_parted(before: "gemmi.Residue", after: "gemmi.Residue") -> bool:
    """Whether a chain ends between two residues, as far as there are signs of it."""
    if (before.segment, before.subchain) != (after.segment, after.subchain):
        return True
    is_end = after.seqid.num < before.seqid.num or any(atom.name in ENDS for atom in before)
    return is_end and not _bonded(before, after)


def _is_residue(residue: "gemmi.Residue") -> bool:
    """By its name, or where that is not known by its backbone."""
    import gemmi

    if gemmi.find_tabulated_residue(residue.name).is_amino_acid():
        return True
    names = {atom.name for atom in residue if atom.element.name in ("C", "N")}
    return {"N", "CA", "C"} <= names or names == {"CA"}


def _is_protein(span: "gemmi.ResidueSpan") -> bool:
    import gemmi

    if not len(span) or span[0].entity_type != gemmi.EntityType.Polymer:
        return False
    is_known = any(gemmi.find_tabulated_residue(residue.name).is_amino_acid() for residue in span)
    return is_known and "Peptide" in span.check_polymer_type().name


def _chain(structure: "gemmi.Structure", name: str, polymer: "gemmi.ResidueSpan") -> ProteinChain:
    parents = {(mod.chain_name.strip(), str(mod.res_id.seqid)): mod.parent_comp_id for mod in structure.mod_residues}
    residues = [max(group, key=_occupancy) for group in polymer.residue_groups()]
    entity = structure.get_entity_of(polymer)
    whole = [names.split(",")[0] for names in entity.full_sequence] if entity else []
    places = [residue.label_seq for residue in residues]
    if not whole or not all(place and place <= len(whole) for place in places):
        places = list(_count(residues))
        whole = [UNKNOWN] * places[-1]
    letters = [_letter(monomer) for monomer in whole]
    numbers = [""] * len(letters)
    coordinates = torch.full((len(letters), 3), torch.nan)
    for place, residue in zip(places, residues, strict=True):
        number = str(residue.seqid)
        seen = _letter(residue.name, parents.get((name, number)))
        letters[place - 1] = letters[place - 1] if seen == UNKNOWN else seen
        whole[place - 1] = residue.name if _best(residue, "CA") is None else UNKNOWN
        atom = _best(residue, "CB") or _best(residue, "CA")
        if atom is not None and all(map(math.isfinite, atom.pos.tolist())):
            numbers[place - 1] = number
            coordinates[place - 1] = torch.tensor(atom.pos.tolist())
    kept = [place for place, monomer in enumerate(whole) if monomer not in CAPS]
    return ProteinChain(
        name, "".join(letters[place] for place in kept), tuple(numbers[place] for place in kept), coordinates[kept]
    )


def _count(residues: "list[gemmi.Residue]") -> Iterator[int]:
    """Places by the authors' numbers. Numbers leap where nothing is missing, too (schemes for antibodies), but not over
    a gap; residues that differ by insertion code only are neighbours."""
    place = 1
    yield place
    for before, after in pairwise(residues):
        place += 1 if _bonded(before, after) else max(after.seqid.num - before.seqid.num, 1)
        yield place


def _bonded(before: "gemmi.Residue", after: "gemmi.Residue") -> bool:
    """By the length of the peptide bond, which is 1.33 angstrom, or of alpha carbons alone, which are 3.8 apart."""
    for first, second, longest in (("C", "N", 2.0), ("CA", "CA", 4.5)):
        ends = _best(before, first), _best(after, second)
        if None not in ends:
            return ends[0].pos.dist(ends[1].pos) < longest
    return False


def _letter(monomer: str, parent: str | None = None) -> str:
    import gemmi

    letters = (gemmi.find_tabulated_residue(name).one_letter_code.strip() for name in (monomer, parent) if name)
    return next((letter.upper() for letter in letters if letter), UNKNOWN)


def _best(residue: "gemmi.Residue", name: str) -> "gemmi.Atom | None":
    return max((atom for atom in residue if atom.name == name), key=lambda atom: atom.occ, default=None)


def _occupancy(residue: "gemmi.Residue") -> float:
    return max((atom.occ for atom in residue), default=0.0)
