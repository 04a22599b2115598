"""Steps of as many samples as a budget of tokens has room for: for samples that differ in length.

The stream of samples is that of `Order`. A step takes the next samples until one more would exceed the budget. Where a
step begins follows from the token counts of all samples before it, so it is found by walking the stream from its start:
one binary search for each step, and one cumulative sum for each epoch.
"""

import heapq
from array import array
from typing import Any

import numpy as np
from jaxtyping import Int64

from ..errors import UserError
from .sampling import Key, SampleStream


def token_counts(data: Any) -> Int64[np.ndarray, "n"] | None:
    """The number of tokens of each sample, which a data set may state as `token_counts`."""
    stated = getattr(data, "token_counts", None)
    if stated is None:
        return None
    counts = np.asarray(stated)
    if counts.shape != (len(data),) or counts.dtype.kind not in "iu" or counts.min() < 1:
        raise UserError(
            f"token_counts of {type(data).__name__} must be a whole number of at least 1 for each of its "
            f"{len(data)} samples."
        )
    return counts.astype(np.int64)


class TokenOrder(SampleStream):
    """Steps of at most `budget` tokens.

    counts: the tokens of each sample. parts: the micro-batches of a step, in all processes together.
    """

    def __init__(self, seed: int, counts: Int64[np.ndarray, "n"], budget: int, parts: int = 1):
        super().__init__(seed, len(counts))
        self.lengths = self.counts = counts
        self.budget, self.total = budget, int(counts.sum())
        self._starts = array("q", [0])  # of the steps so far
        self._tokens = 0  # of all samples before the last of these starts
        self._sums: tuple[int, np.ndarray] = -1, np.zeros(0)
        self._check(parts)

    def _check(self, parts: int) -> None:
        largest = int(self.counts.argmax())
        needed = parts * int(self.counts[largest])
        if self.budget < needed:
            each = f" and each of the {parts} micro-batches of a step needs a sample," if parts > 1 else ""
            raise UserError(
                f"--train.tokens-per-batch {self.budget} is too small: training sample {largest} has "
                f"{self.counts[largest]} tokens,{each} so choose at least {needed}."
            )

    def start(self, step: int) -> int:
        while len(self._starts) <= step:
            epoch, rest = divmod(self._tokens + self.budget, self.total)
            before = self._tokens_before(epoch)
            offset = int(before.searchsorted(rest, side="right")) - 1
            self._starts.append(epoch * self.size + offset)
            self._tokens = epoch * self.total + int(before[offset])
        return self._starts[step]

    def parts(self, step: int, count: int) -> list[list[Key]]:
        """The largest samples first, each goes to the micro-batch that has the fewest tokens (Graham 1969): memory
        and time go by tokens. The first sample of the step stays the first, on which attention is monitored."""
        keys = self.step(step)
        counts = self.counts[[index for _, index in keys]]
        parts: list[list[int]] = [[] for _ in range(count)]
        filled = [(0, part) for part in range(count)]
        for place in np.argsort(-counts, kind="stable").tolist():
            tokens, part = filled[0]
            parts[part].append(place)
            heapq.heapreplace(filled, (tokens + int(counts[place]), part))
        return [[keys[place] for place in part] for part in sorted(map(sorted, parts))]

    def _tokens_before(self, epoch: int) -> Int64[np.ndarray, "n"]:
        """For each sample of an epoch, in their order, the tokens of the epoch before it."""
        if self._sums[0] != epoch:
            counts = self.counts[self.epoch(epoch)]
            self._sums = epoch, np.cumsum(counts) - counts
        return self._sums[1]
