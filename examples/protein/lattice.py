"""The HP model of protein folding (Dill 1985; Lau and Dill 1989) on the square lattice, solved exactly.

A chain of hydrophobic (H) and polar (P) residues folds as a self-avoiding walk. Its energy is minus the number of H-H
contacts: residues that are neighbours on the lattice but not along the chain. Walks of equal contacts have equal
energies for every chain, so they are the same fold here: a fold is a set of contacts. A chain whose lowest energy is
that of a single walk is said to design it.

A chain is a number: bit i says whether residue i is hydrophobic.
"""

import warnings
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from tqdm import tqdm

from core import UserError
from core.files import reason, replacing

LENGTHS = range(4, 17)  # of chains; a 16-mer has 802,075 walks, and each residue more 2.7 times as many
FEW = 64  # ground states are listed for chains that have at most this many
GRID = 64  # lattice sites in a row: more than any chain reaches
EAST, NORTH, WEST, SOUTH = STEPS = 1, GRID, -1, -GRID


@dataclass(frozen=True)
class Landscape:
    """Every chain of one length in every fold."""

    walks: Int[np.ndarray, "folds length"]
    """The sites, numbered row by row, of a walk with each fold's contacts."""
    ways: Int[np.ndarray, "folds"]
    """How many walks have the contacts of each fold."""
    contacts: Bool[np.ndarray, "folds pairs"]
    """Which of the pairs that `pairs` lists touch."""
    energy: Int[np.ndarray, "chains"]
    """The energy of the ground states of each chain."""
    degeneracy: Int[np.ndarray, "chains"]
    """How many walks are ground states of each chain."""
    ground: Int[np.ndarray, "ground 2"]
    """(chain, fold): the ground states of each chain that has at most FEW."""

    @property
    def length(self) -> int:
        return self.walks.shape[1]

    def decode(self, log_odds: Float[Tensor, "b n n"]) -> Int[Tensor, "b"]:
        """The most probable fold of each contact map, its pairs taken to be independent."""
        i, j = pairs(self.length)
        return (log_odds[:, i, j].float().cpu() @ torch.from_numpy(self.contacts).float().T).argmax(dim=1)


def pairs(length: int) -> tuple[Int[np.ndarray, "pairs"], Int[np.ndarray, "pairs"]]:
    """The residues i < j that can touch: an odd number of steps apart, as the lattice is a chessboard; at least 3."""
    i, j = np.triu_indices(length, 3)
    odd = (j - i) % 2 == 1
    return i[odd], j[odd]


def hydrophobic(chains: Int[np.ndarray, "b"], length: int) -> Int[np.ndarray, "b length"]:
    """1 for H, 0 for P."""
    return chains[:, None] >> np.arange(length) & 1


def grow_walks(length: int) -> Int[np.ndarray, "walks length"]:
    """The self-avoiding walks that no rotation or reflection makes equal: the first step goes east, the first turn
    north."""
    walks = np.array([[0, EAST]], dtype=np.int16)
    for residues in range(2, length):
        end, grown = walks[:, -1:], []
        for step in STEPS:
            free = (walks != end + step).all(axis=1)
            if step == SOUTH:
                free &= end[:, 0] != residues - 1  # where only the straight walk ends
            grown.append(np.concatenate([walks[free], end[free] + np.int16(step)], axis=1))
        walks = np.concatenate(grown)
    return walks


def solve(length: int, batch: int = 256) -> Landscape:
    """Fold every chain of a length: energies are a product of matrices, chains by folds; half a minute for 16-mers."""
    i, j = pairs(length)
    walks = grow_walks(length)
    touch = np.isin(np.abs(walks[:, i] - walks[:, j]), (EAST, NORTH))
    _, first, ways = np.unique(touch @ (1 << np.arange(len(i))), return_index=True, return_counts=True)
    walks, contacts = walks[first], touch[first]

    folds, weights = torch.from_numpy(contacts).float().T, torch.from_numpy(ways).float()
    energy, degeneracy, ground = [], [], []
    for start in tqdm(range(0, 2**length, batch), f"folding the {length}-mers", leave=False, disable=length < 14):
        chains = np.arange(start, min(start + batch, 2**length))
        h = torch.from_numpy(hydrophobic(chains, length)).float()
        found = (h[:, i] * h[:, j]) @ folds
        best = found.amax(dim=1, keepdim=True)
        lowest = found == best
        states = lowest.float() @ weights
        few = (states <= FEW).nonzero()[:, 0]
        chain, fold = lowest[few].nonzero().T
        energy.append(-best[:, 0])
        degeneracy.append(states)
        ground.append(torch.stack([start + few[chain], fold], dim=1))
    return Landscape(
        walks=walks,
        ways=ways.astype(np.int32),
        contacts=contacts,
        energy=torch.cat(energy).to(torch.int8).numpy(),
        degeneracy=torch.cat(degeneracy).int().numpy(),
        ground=torch.cat(ground).int().numpy(),
    )


def landscape(length: int, folder: Path) -> Landscape:
    """As `solve`, but kept in a file of the folder for the next time."""
    if length not in LENGTHS:
        raise UserError(f"Chains of {length} residues: the lattice is solved for {LENGTHS[0]} to {LENGTHS[-1]}.")
    path = folder / f"hp-{length}.npz"
    if path.exists():
        try:
            with np.load(path, allow_pickle=False) as file:  # a zip file, with checksums
                found = Landscape(**file)
            if found.length == length and len(found.energy) == len(found.degeneracy) == 2**length:
                return found
            warnings.warn(f"{path} is not of {length}-mers: it is made anew.", stacklevel=2)
        except Exception as error:  # damaged in one of many ways
            warnings.warn(f"{path} is damaged ({error}): it is made anew.", stacklevel=2)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(path) as partial:
            partial.touch()  # before the work, so that an error in writing comes first
            found = solve(length)
            np.savez(partial, **asdict(found))
    except OSError as error:
        raise UserError(f"{folder} cannot be written ({reason(error)}): name another --data.path.") from None
    return found
