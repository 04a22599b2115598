"""How matrices are stored in a page: all numbers in half precision, or the largest of each row and each column.

A matrix is bytes: how many numbers there are (4 bytes), the largest of them (4, single precision), and the numbers
divided by it in half precision. Of the largest alone, also how many there are in each row (2 each), and their columns
(2 each), before the numbers. Numbers of 2 bytes are written as all low bytes, then all high bytes, which compresses
better. All is little-endian.
"""

import zlib
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor


def whole(matrix: Float[Tensor, "n n"]) -> bytes:
    """All numbers of a matrix."""
    return _numbers(matrix.flatten())


def largest(matrix: Float[Tensor, "n n"], count: int) -> tuple[bytes, float]:
    """The `count` largest numbers of each row and of each column, and their share in the sum of all."""
    count = min(count, len(matrix))
    kept = torch.zeros_like(matrix, dtype=torch.bool)
    kept.scatter_(1, matrix.topk(count, dim=1).indices, True)
    kept.scatter_(0, matrix.topk(count, dim=0).indices, True)
    kept &= matrix > 0
    rows = kept.sum(dim=1).numpy().astype("<u2")
    columns = kept.nonzero()[:, 1].numpy().astype("<u2")
    values = matrix[kept]
    numbers, share = _numbers(values), float(values.sum() / matrix.sum().clamp(min=1e-30))
    return numbers[:8] + _planes(rows) + _planes(columns) + numbers[8:], share


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
