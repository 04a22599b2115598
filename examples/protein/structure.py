"""Protein chains from PDB and mmCIF files, and which of their residues touch."""

import gzip
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from core import IGNORE, UserError

if TYPE_CHECKING:
    import gemmi

UNKNOWN = "X"


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
    """The protein chains of a PDB or mmCIF file (may be gzipped), or the one named; of several models the first.

    Sequences are those of SEQRES or entity_poly_seq; in a file without, those of the residues resolved, with an X for
    each number left out between two that are not bonded. Of alternate locations the one of highest occupancy counts,
    the first of equal ones.
    """
    structure = _read(path)
    found = []
    for chain in structure[0]:
        polymer = chain.get_polymer()
        if "Peptide" in polymer.check_polymer_type().name:
            found.append(_chain(structure, chain.name, polymer))
    if not found:
        raise UserError(f"{path} has no protein chain.")
    if name is None:
        return found
    if chosen := [chain for chain in found if chain.name == name]:
        return chosen
    names = ", ".join(chain.name or "(without a name)" for chain in found)
    raise UserError(f"{path} has no protein chain {name}: there are {names}.")


def _read(path: Path) -> "gemmi.Structure":
    try:
        import gemmi
    except ImportError:
        raise UserError('Structures need the package gemmi: pip install -e ".[protein]".') from None
    if not path.is_file():
        raise UserError(f"{path} cannot be read: there is no such file.")
    if not path.stat().st_size:
        raise UserError(f"{path} is empty.")
    try:
        structure = gemmi.read_structure(str(path), format=gemmi.CoorFormat.Detect)
        structure.setup_entities()
        structure.assign_label_seq_id()
    except Exception as error:  # of many kinds, down to IndexError
        reason = " ".join(str(error).split()).rstrip(".:")
        raise UserError(f"{path} is not a structure that can be read (PDB or mmCIF): {reason}.") from None
    if structure.input_format == gemmi.CoorFormat.Pdb:
        _check_places(path)
    if not len(structure) or not structure[0].count_atom_sites():
        raise UserError(f"{path} is not a structure: it has no atoms in the format of PDB or mmCIF.")
    return structure


def _check_places(path: Path) -> None:
    """gemmi takes coordinates of a PDB file that are no numbers for 0."""
    with (gzip.open if path.suffix == ".gz" else open)(path, "rt", errors="replace") as lines:
        for number, line in enumerate(lines, 1):
            if line.startswith(("ATOM  ", "HETATM")):
                try:
                    float(line[30:38]), float(line[38:46]), float(line[46:54])
                except ValueError:
                    raise UserError(f"{path}, line {number}: an atom cannot be at {line[30:54].strip()}.") from None


def _chain(structure: "gemmi.Structure", name: str, polymer: "gemmi.ResidueSpan") -> ProteinChain:
    parents = {(mod.chain_name, str(mod.res_id.seqid)): mod.parent_comp_id for mod in structure.mod_residues}
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
        if (atom := _best(residue, "CB") or _best(residue, "CA")) is not None:
            numbers[place - 1] = number
            coordinates[place - 1] = torch.tensor(atom.pos.tolist())
    return ProteinChain(name, "".join(letters), tuple(numbers), coordinates)


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
