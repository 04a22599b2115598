"""Precision of the pairs that a model finds most probable."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from core import IGNORE

# Residues apart along the chain, first and last (CASP: Monastyrskyy et al. 2014).
SEPARATIONS: dict[str, tuple[int, int | None]] = {"short": (6, 11), "medium": (12, 23), "long": (24, None)}
CUTS = {"L/5": 5, "L/2": 2, "L": 1}


class Precision(NamedTuple):
    """The precision for the pairs of one range."""

    pairs: int
    """Number of pairs whose target is known."""
    contacts: int
    """Number of those that touch."""
    surest: Float[Tensor, "k"]
    """Precision of the most probable pair, the two most probable, ..., up to L pairs (or as many as there are)."""
    length: int
    """L: the length of the sequence."""

    @property
    def random(self) -> float:
        """The precision of pairs picked at random."""
        return self.contacts / self.pairs if self.pairs else float("nan")

    def at(self, part: int) -> float:
        """Precision of the L / part most probable pairs (rounded down, at least 1); NaN if there are none."""
        picked = min(max(self.length // part, 1), len(self.surest))
        return self.surest[picked - 1].item() if picked else float("nan")


def precision_at(
    probabilities: Float[Tensor, "n n"],
    target: Float[Tensor, "n n"],
    separations: Mapping[str, tuple[int, int | None]] = SEPARATIONS,
) -> dict[str, Precision]:
    """Precision of a symmetric map against the target (1, 0, or IGNORE), range by range.

    L is the length of the sequence, residues that are not resolved included, as in CASP and in Rao et al. 2021.
    """
    n = len(target)
    i, j = torch.triu_indices(n, n, 1, device=target.device)
    order = probabilities[i, j].argsort(descending=True, stable=True)
    i, j = i[order], j[order]
    found = {}
    for name, (first, last) in separations.items():
        kept = (j - i >= first) & (j - i <= (n if last is None else last)) & (target[i, j] != IGNORE)
        touch = target[i[kept], j[kept]].double()
        counts = torch.arange(1, min(n, len(touch)) + 1, device=target.device)
        found[name] = Precision(len(touch), int(touch.sum()), touch[:n].cumsum(0) / counts, n)
    return found
