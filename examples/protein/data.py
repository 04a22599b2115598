"""Chains of the HP model with the contacts of their ground states; the folds of the test set are not trained on."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.data import Dataset

from core import IGNORE, Batch, UserError
from core.config import BetweenZeroAndOne, Count, configclass

from .lattice import FEW, LENGTHS, Landscape, hydrophobic, landscape, pairs

LONGEST_NEAR = 8  # length of the longest chains that have no pairs at long range, or too few
Motif = tuple[tuple[int, int], ...]


@configclass
class DataConfig:
    path: Path = Path("data/hp-lattice")
    """Directory of the solved lattice; it is solved there if it is missing (a minute)."""
    lengths: tuple[Count, ...] = (10, 11, 12, 13, 14, 15, 16)
    """Lengths of the chains that are trained on."""
    test_lengths: tuple[Count, ...] = (14, 15, 16)
    """Lengths of the chains that are tested on."""
    degeneracy: Count = 16
    """Most ground states of a training chain, whose target is their mean contacts; test chains have one."""
    test_fraction: BetweenZeroAndOne = 0.15
    """Fraction of the designed folds that are not trained on."""

    def __post_init__(self):
        if not 1 <= self.degeneracy <= FEW:
            raise UserError(f"--data.degeneracy must be from 1 to {FEW}, not {self.degeneracy}.")
        if short := [n for n in self.test_lengths if n <= LONGEST_NEAR]:
            raise UserError(
                f"--data.test-lengths must be more than {LONGEST_NEAR}, or nothing is far apart: not {short[0]}."
            )
        for flag, lengths in (("lengths", self.lengths), ("test-lengths", self.test_lengths)):
            if wrong := [n for n in lengths if n not in LENGTHS]:
                raise UserError(f"--data.{flag} must be from {LENGTHS[0]} to {LENGTHS[-1]}, not {wrong[0]}.")


class Chain(NamedTuple):
    residues: Int[Tensor, "n"]
    """1 for H, 0 for P."""
    contacts: Float[Tensor, "n n"]
    """Fraction of the ground states in which i < j touch; IGNORE where they never can."""

    def reversed(self) -> "Chain":
        return Chain(self.residues.flip(0), self.contacts.flip(0, 1).T)


class Chains(Dataset):
    def __init__(self, chains: list[Chain]):
        self.chains = chains

    def __len__(self) -> int:
        return len(self.chains)

    def __getitem__(self, index: int) -> Chain:
        return self.chains[index]


class TrainChains(Chains):
    """Each chain in a random direction."""

    draws = 1

    def make(self, indices: list[int], draws: Float[np.ndarray, "n 1"]) -> list[Chain]:
        ends = zip(indices, draws[:, 0], strict=True)
        return [self.chains[index].reversed() if draw < 0.5 else self.chains[index] for index, draw in ends]


class ProteinData(NamedTuple):
    train: TrainChains
    test: Chains
    landscapes: dict[int, Landscape]
    validation: Chains | None = None
    note: str = ""
    """Where the validation and the test split come from."""


def collate(chains: list[Chain]) -> Batch:
    """All batches are as wide as the longest possible chain, so that the results of a test set can be concatenated."""
    width, count = LENGTHS[-1], len(chains)
    residues = torch.zeros(count, width, dtype=torch.long)
    mask = torch.zeros(count, width, dtype=torch.bool)
    contacts = torch.full((count, width, width), float(IGNORE))
    for row, chain in enumerate(chains):
        n = len(chain.residues)
        residues[row, :n], mask[row, :n], contacts[row, :n, :n] = chain.residues, True, chain.contacts
    return Batch((residues, mask), contacts)


def read_data(config: DataConfig) -> ProteinData:
    """A fold is new if its motif is: training has it at no length, from neither end, not as one of many ground states.
    Of a chain and its reverse, which is the same chain, there is one."""
    lengths = sorted({*config.lengths, *config.test_lengths})
    landscapes = {length: landscape(length, config.path) for length in lengths}
    motifs = {length: list(fold_motifs(found)) for length, found in landscapes.items()}
    designed = {
        motifs[length][fold]
        for length in config.test_lengths
        for _, (fold,) in ground_states(landscapes[length], most=1)
    }
    designed = sorted(designed)
    order = np.random.default_rng(0).permutation(len(designed))
    held_out = {designed[index] for index in order[: round(config.test_fraction * len(designed))]}

    train, test = [], []
    for length, found in landscapes.items():
        for chain, folds in ground_states(found, config.degeneracy):
            new = [motifs[length][fold] in held_out for fold in folds]
            if not any(new) and length in config.lengths:
                train.append(make_chain(found, chain, folds))
            elif all(new) and found.degeneracy[chain] == 1 and length in config.test_lengths:
                test.append(make_chain(found, chain, folds))
    if not train or not test:
        raise UserError("No chain is left to train or test on: choose other --data.lengths or --data.test-fraction.")
    return ProteinData(TrainChains(train), Chains(test), landscapes)


def ground_states(found: Landscape, most: int) -> Iterator[tuple[int, Int[np.ndarray, "folds"]]]:
    """The chains with at most so many, and their folds."""
    chains, starts = np.unique(found.ground[:, 0], return_index=True)
    weights = 1 << np.arange(found.length)[::-1]
    reverse = hydrophobic(chains, found.length) @ weights
    for chain, other, folds in zip(chains, reverse, np.split(found.ground[:, 1], starts[1:]), strict=True):
        if chain <= other and found.degeneracy[chain] <= most:
            yield int(chain), folds


def fold_motifs(found: Landscape) -> Iterator[Motif]:
    """Each fold's contacts, counted from the first residue that has one, or back from the last: whichever end sorts
    first. A chain that only grows tails that touch nothing keeps its motif."""
    i, j = pairs(found.length)
    for touching in found.contacts:
        yield motif(list(zip(i[touching].tolist(), j[touching].tolist(), strict=True)))


def motif(contacts: Iterable[tuple[int, int]]) -> Motif:
    contacts = list(contacts)
    first, last = min((i for i, _ in contacts), default=0), max((j for _, j in contacts), default=0)
    ahead = tuple(sorted((i - first, j - first) for i, j in contacts))
    return min(ahead, tuple(sorted((last - j, last - i) for i, j in contacts)))


def make_chain(found: Landscape, chain: int, folds: Int[np.ndarray, "folds"]) -> Chain:
    """A chain with the mean contacts of its ground states."""
    ways = found.ways[folds]
    contacts = torch.full((found.length, found.length), float(IGNORE))
    contacts[pairs(found.length)] = torch.from_numpy(ways @ found.contacts[folds] / ways.sum()).float()
    return Chain(torch.from_numpy(hydrophobic(np.array([chain]), found.length)[0]), contacts)
