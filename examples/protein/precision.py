"""How many of the pairs that a model is surest of do touch."""

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
    """Of the pairs of one range."""

    pairs: int
    """How many there are whose truth is known."""
    contacts: int
    """How many of them touch."""
    surest: Float[Tensor, "k"]
    """Share that touch of the surest pair, the two surest, ..., to the L surest (fewer if there are not as many)."""
    length: int
    """L: residues of the sequence."""

    @property
    def random(self) -> float:
        """What pairs picked by chance would have."""
        return self.contacts / self.pairs if self.pairs else float("nan")

    def at(self, part: int) -> float:
        """Precision of the L / part surest, rounded down, at least 1; of all pairs where fewer; NaN of none."""
        picked = min(max(self.length // part, 1), len(self.surest))
        return self.surest[picked - 1].item() if picked else float("nan")


def precision_at(
    chances: Float[Tensor, "n n"],
    truth: Float[Tensor, "n n"],
    separations: Mapping[str, tuple[int, int | None]] = SEPARATIONS,
) -> dict[str, Precision]:
    """Precision of a symmetric map against the truth (1, 0, or IGNORE), range by range.

    L is the length of the sequence, residues that are not resolved included, as in CASP and in Rao et al. 2021.
    """
    n = len(truth)
    i, j = torch.triu_indices(n, n, 1, device=truth.device)
    order = chances[i, j].argsort(descending=True, stable=True)
    i, j = i[order], j[order]
    found = {}
    for name, (first, last) in separations.items():
        kept = (j - i >= first) & (j - i <= (n if last is None else last)) & (truth[i, j] != IGNORE)
        touch = truth[i[kept], j[kept]].double()
        counts = torch.arange(1, min(n, len(touch)) + 1, device=truth.device)
        found[name] = Precision(len(touch), int(touch.sum()), touch[:n].cumsum(0) / counts, n)
    return found
