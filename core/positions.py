"""Where a token is: learned, sin-cos and rotary positions, on a line or on a grid, at any size.

A size is an int (a sequence) or (rows, columns) (a grid).
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from .errors import UserError
from .init import learned
from .memory import check_room

Size = int | tuple[int, int]


class LearnedPositions(nn.Module):
    """One learned vector per position, resized when asked for a grid other than its own.

    prefix: how many positions stand before the body (class and register tokens); they are never resized.
    crop: a smaller grid takes the first rows and columns, and none can be larger (a spectrogram's end is not its edge).
    """

    def __init__(self, dim: int, size: Size, prefix: int = 0, crop: bool = False):
        super().__init__()
        self.size, self.prefix, self.crop = size, prefix, crop
        check_room(4 * dim * (prefix + _count(size)), f"A table of positions for size {size}", "choose a smaller size")
        self.weight = learned(prefix + _count(size), dim)

    def forward(self, size: Size) -> Float[Tensor, "n d"]:
        if not self.crop:
            return resize_positions(self.weight, self.size, size, self.prefix)
        if size[0] > self.size[0] or size[1] > self.size[1]:
            raise UserError(f"A grid of {size[0]} x {size[1]}, but there are positions for only {self.size}.")
        body = rearrange(self.weight[self.prefix :], "(r c) d -> r c d", r=self.size[0])
        columns = torch.arange(size[1], device=body.device)  # a slice would, exported, not serve all sizes
        body = body[: size[0]].index_select(1, columns)
        return torch.cat([self.weight[: self.prefix], body.flatten(0, 1)])


def resize_positions(weight: Float[Tensor, "n d"], old: Size, new: Size, prefix: int = 0) -> Float[Tensor, "m d"]:
    """Positions learned at size `old`, for size `new`.

    A grid is interpolated (bicubic, antialiased, as timm does); a sequence is cut, and can't grow.
    """
    # A size is asked whether it is a tuple: the length of a sequence that is exported is no int, but a symbol.
    if not (isinstance(old, tuple) and isinstance(new, tuple)):
        if isinstance(old, tuple) or isinstance(new, tuple):
            raise UserError(f"Positions of size {old} cannot serve size {new}: one is a sequence, the other a grid.")
        if new > old:
            raise UserError(f"{new} tokens, but there are learned positions for only {old}.")
        return weight[: prefix + new]
    if old == new:
        return weight
    body = rearrange(weight[prefix:].float(), "(r c) d -> 1 d r c", r=old[0])
    body = F.interpolate(body, size=new, mode="bicubic", antialias=True)
    return torch.cat([weight[:prefix], rearrange(body, "1 d r c -> (r c) d").to(weight.dtype)])


def sincos_positions(dim: int, size: Size, theta: float = 10_000.0) -> Float[Tensor, "n d"]:
    """Fixed sines and cosines (Vaswani et al. 2017, section 3.5); half of `dim` for each axis of a grid."""
    axes = 2 if isinstance(size, tuple) else 1
    if dim % (2 * axes):
        raise UserError(f"Sin-cos positions need a width divisible by {2 * axes}, not {dim}.")
    angles = [_angles(coordinate, dim // axes // 2, theta) for coordinate in _coordinates(size)]
    return torch.cat([part for angle in angles for part in (angle.sin(), angle.cos())], dim=-1)


def rotary_table(
    head_dim: int,
    size: Size,
    *,
    prefix: int = 0,
    theta: float = 10_000.0,
    unit: bool = False,
    device: torch.device | None = None,
) -> tuple[Float[Tensor, "n c"], Float[Tensor, "n c"]]:
    """Cosines and sines that `rotate` turns queries and keys with (Su et al. 2021, section 3.4).

    On a grid the first half of the frequencies follows the row and the second the column. Prefix tokens stay unturned.
    unit: coordinates run from -1 to 1 over the grid, at 2 pi a period (DINOv3); else they count tokens.
    """
    axes = 2 if isinstance(size, tuple) else 1
    if head_dim % (2 * axes):
        raise UserError(f"Rotary positions need heads of a width divisible by {2 * axes}, not {head_dim}.")
    coordinates = _coordinates(size, device)
    if unit:
        extents = size if isinstance(size, tuple) else (size,)
        coordinates = [2 * math.pi * ((c + 0.5) / n * 2 - 1) for c, n in zip(coordinates, extents, strict=True)]
    angles = torch.cat([_angles(c, head_dim // axes // 2, theta) for c in coordinates], dim=-1)
    angles = F.pad(angles, (0, 0, prefix, 0)).repeat(1, 2)
    return angles.cos(), angles.sin()


def rotate(
    x: Float[Tensor, "b h n c"], table: tuple[Float[Tensor, "n c"], Float[Tensor, "n c"]]
) -> Float[Tensor, "b h n c"]:
    """Turn each pair (i, i + c/2) of features by its position's angle."""
    cos, sin = table
    first, second = x.chunk(2, dim=-1)
    return (x * cos + torch.cat([-second, first], dim=-1) * sin).to(x.dtype)


def _count(size: Size) -> int:
    return size[0] * size[1] if isinstance(size, tuple) else size


def _coordinates(size: Size, device: torch.device | None = None) -> Sequence[Float[Tensor, "n"]]:
    """Each token's coordinate along each axis, row-major."""
    extents = size if isinstance(size, tuple) else (size,)
    axes = [torch.arange(n, dtype=torch.float32, device=device) for n in extents]
    return [axis.flatten() for axis in torch.meshgrid(*axes, indexing="ij")]


def _angles(coordinate: Float[Tensor, "n"], count: int, theta: float) -> Float[Tensor, "n k"]:
    """`coordinate` at `count` frequencies from 1 falling towards 1 / theta."""
    exponents = torch.arange(count, dtype=torch.float32, device=coordinate.device) / count
    return coordinate[:, None] / theta**exponents
