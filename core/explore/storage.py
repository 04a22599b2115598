"""How matrices are stored in a page: all numbers in half precision, or the largest of each row and each column.

A matrix is bytes: how many numbers there are (4 bytes), the largest of them (4, single precision), and the numbers
divided by it in half precision. Of the largest alone, also how many there are in each row (2 each), and their columns
(2 each), before the numbers. Numbers of 2 bytes are written as all low bytes, then all high bytes, which compresses
better. All is little-endian.
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Numbers:
    """Of a matrix "n n" all numbers, or the largest of each row and each column."""

    n: int
    values: Float[Tensor, "count"]
    places: Int[Tensor, "count"] | None
    """Where they are, row * n + column, in order; None: the numbers are all there are."""
    total: float
    """Of all numbers of the matrix."""
    count: int
    """Of the largest in each row and column."""

    @classmethod
    def all_of(cls, matrix: Float[Tensor, "n n"]) -> "Numbers":
        return cls(len(matrix), matrix.flatten().clone(), None, float(matrix.sum()), len(matrix))

    @classmethod
    def largest_of(cls, matrix: Float[Tensor, "n n"], count: int) -> "Numbers":
        """Those of at least this rank in their row or their column, without zeros."""
        n, count = len(matrix), min(count, len(matrix))
        number = torch.arange(n)
        rows = matrix.topk(count, dim=1, sorted=False).indices + n * number[:, None]
        columns = matrix.topk(count, dim=0, sorted=False).indices * n + number
        places = torch.cat([rows.flatten(), columns.flatten()]).unique()
        values = matrix.flatten()[places]
        return cls(n, values[values > 0], places[values > 0].int(), float(matrix.sum()), count)

    def largest(self, count: int) -> "Numbers":
        """As `largest_of` the matrix, but no more than these numbers."""
        if self.places is None:
            return self.largest_of(self.values.view(self.n, self.n), count)
        if count >= self.count:
            return self
        kept = torch.zeros(len(self.values), dtype=torch.bool)
        descending = self.values.argsort(descending=True)
        for line in (self.places // self.n, self.places % self.n):
            order = descending[line[descending].argsort(stable=True)]  # line by line, the largest first
            counts = line.bincount(minlength=self.n)
            rank = torch.arange(len(order)) - (counts.cumsum(0) - counts).repeat_interleave(counts)
            kept[order[rank < count]] = True
        return replace(self, values=self.values[kept], places=self.places[kept], count=count)

    @property
    def share(self) -> float:
        """Of their sum in that of the whole matrix."""
        return 1.0 if self.places is None else float(self.values.sum()) / max(self.total, 1e-30)

    def packed(self) -> bytes:
        numbers = _numbers(self.values)
        if self.places is None:
            return numbers
        rows = (self.places // self.n).bincount(minlength=self.n).numpy().astype("<u2")
        columns = (self.places % self.n).numpy().astype("<u2")
        return numbers[:8] + _planes(rows) + _planes(columns) + numbers[8:]


def bits(matrix: Bool[Tensor, "n n"]) -> bytes:
    """One bit for each pair, those of a row in whole bytes, the lowest bit first."""
    return np.packbits(matrix.numpy(), axis=1, bitorder="little").tobytes()


def compress(parts: Sequence[bytes]) -> bytes:
    return zlib.compress(b"".join(parts), 6)


def _numbers(values: Float[Tensor, "count"]) -> bytes:
    most = float(values.max()) if len(values) else 0.0
    scaled = values.double() / most if most > 0 else torch.zeros_like(values)
    head = np.array([len(values)], dtype="<u4").tobytes() + np.array([most], dtype="<f4").tobytes()
    return head + _planes(scaled.numpy().astype("<f2"))


def _planes(values: np.ndarray) -> bytes:
    return values.view(np.uint8).reshape(-1, 2).T.tobytes()
