"""Chains of the HP model with the contacts of their ground states; the folds of the test set are not trained on."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.data import Dataset

from core import IGNORE, Batch, UserError
from core.config import BetweenZeroAndOne, Count, configclass
from core.data import DataSplits

from .lattice import FEW, LENGTHS, Landscape, hydrophobic, landscape, pairs

LONGEST_NEAR = 8  # length of the longest chains that have no pairs at long range, or too few
Motif = tuple[tuple[int, int], ...]


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
    """Each chain starts at a random end."""

    draws = 1

    def make(self, indices: list[int], draws: Float[np.ndarray, "n 1"]) -> list[Chain]:
        ends = zip(indices, draws[:, 0], strict=True)
        return [self.chains[index].reversed() if draw < 0.5 else self.chains[index] for index, draw in ends]


@dataclass(frozen=True, kw_only=True)
class ProteinData(DataSplits[Chains]):
    landscapes: dict[int, Landscape]


@configclass
class HPLattice:
    """Chains of the HP model, and the contacts of their ground states."""

    path: Path = Path("data/hp-lattice")
    """Directory that keeps the solved lattice, which is solved at the first start (a minute)."""
    lengths: tuple[Count, ...] = (10, 11, 12, 13, 14, 15, 16)
    """Residues of the chains that are trained on."""
    test_lengths: tuple[Count, ...] = (14, 15, 16)
    """Residues of the chains for validation and testing; chains of these lengths are trained on as well."""
    degeneracy: Count = 16
    """Most ground states of a training chain, whose contacts are averaged; other chains have one ground state."""
    test_fraction: BetweenZeroAndOne = 0.15
    """Share of the designed folds that only the test split has."""
    validation_fraction: BetweenZeroAndOne = 0.1
    """Share of the designed folds that only the validation split has."""

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

    def read(self) -> ProteinData:
        """A fold is new if its motif is: training has it at no length, from neither end, and not as one of several
        ground states. Of a chain and its reverse, which is the same chain, there is one."""
        lengths = sorted({*self.lengths, *self.test_lengths})
        landscapes = {length: landscape(length, self.path) for length in lengths}
        motifs = {length: list(fold_motifs(found)) for length, found in landscapes.items()}
        designed = sorted(
            {
                motifs[length][fold]
                for length in self.test_lengths
                for _, (fold,) in ground_states(landscapes[length], most=1)
            }
        )
        order = np.random.default_rng(0).permutation(len(designed))
        tested, validated = (round(share * len(designed)) for share in (self.test_fraction, self.validation_fraction))
        split_of = {designed[index]: "test" for index in order[:tested]}
        split_of |= {designed[index]: "validation" for index in order[tested : tested + validated]}

        splits: dict[str, list[Chain]] = {"train": [], "validation": [], "test": []}
        for length, found in landscapes.items():
            for chain, folds in ground_states(found, self.degeneracy):
                of_chain = {split_of.get(motifs[length][fold], "train") for fold in folds}
                if of_chain == {"train"} and length in self.lengths:
                    splits["train"].append(make_chain(found, chain, folds))
                elif found.degeneracy[chain] == 1 and of_chain != {"train"} and length in self.test_lengths:
                    splits[of_chain.pop()].append(make_chain(found, chain, folds))
        if not all(splits.values()):
            raise UserError(
                "No chain is left to train, to validate or to test on: choose other --data.lengths or fractions."
            )
        note = (
            f"Of the designed folds, {100 * self.test_fraction:g} % are only in the test split and "
            f"{100 * self.validation_fraction:g} % only in the validation split, the same in every run."
        )
        return ProteinData(
            train=TrainChains(splits["train"]),
            validation=Chains(splits["validation"]),
            test=Chains(splits["test"]),
            note=note,
            landscapes=landscapes,
        )


def collate(chains: list[Chain]) -> Batch:
    """All batches are as wide as the longest possible chain, so that the results of a whole test set are one tensor."""
    width, count = LENGTHS[-1], len(chains)
    residues = torch.zeros(count, width, dtype=torch.long)
    mask = torch.zeros(count, width, dtype=torch.bool)
    contacts = torch.full((count, width, width), float(IGNORE))
    for row, chain in enumerate(chains):
        n = len(chain.residues)
        residues[row, :n], mask[row, :n], contacts[row, :n, :n] = chain.residues, True, chain.contacts
    return Batch((residues, mask), contacts)


def ground_states(found: Landscape, most: int) -> Iterator[tuple[int, Int[np.ndarray, "folds"]]]:
    """The chains with at most so many ground states, and their folds."""
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
