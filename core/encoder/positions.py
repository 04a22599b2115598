"""The position of a token: learned, factorised, sin-cos and rotary positions, on a line or on a grid, at any size.

A size is an int (a sequence) or (rows, columns) (a grid).
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from ..attention.packing import TokenPlaces
from ..attention.rotary import Size, count_tokens, rotary_angles, token_coordinates, turns
from ..config import configclass
from ..errors import UserError
from ..memory import check_room
from .init import learned, no_decay


@configclass
class PositionResize:
    """How learned positions are interpolated for a grid other than their own."""

    mode: Literal["bicubic", "bilinear"] = "bicubic"
    """Kind of interpolation. Factorised positions are always interpolated linearly, without antialiasing."""
    antialias: bool = True
    """Average over the positions in between when a grid becomes smaller."""
    align_corners: bool = False
    """Whether the centres of the corner patches stay in place, not the edges of the grid."""
    keep_aspect: bool = False
    """Interpolate for a square of the longer side, of which a grid takes its first rows and columns."""

    def target(self, size: tuple[int, int]) -> tuple[int, int]:
        """The grid that is interpolated for a grid of `size`."""
        longer: Any = torch.sym_max(*size)  # in a graph a symbol
        return (longer, longer) if self.keep_aspect else size


DEFAULT_RESIZE = PositionResize()


class LearnedPositions(nn.Module):
    """One learned vector per position, resized when asked for a grid other than its own.

    prefix: how many positions stand before the body (class and register tokens); they are never resized.
    crop: a smaller grid takes the first rows and columns, and none can be larger (a spectrogram's end is not its edge).
    resize: how a grid is interpolated.
    """

    def __init__(
        self,
        dim: int,
        size: Size,
        prefix: int = 0,
        crop: bool = False,
        resize: PositionResize = DEFAULT_RESIZE,
    ):
        super().__init__()
        self.size, self.prefix, self.crop, self.resize = size, prefix, crop, resize
        check_room(
            4 * dim * (prefix + count_tokens(size)), f"A table of positions for size {size}", "choose a smaller size"
        )
        self.weight = learned(prefix + count_tokens(size), dim)

    def forward(self, size: Size) -> Float[Tensor, "n d"]:
        if not self.crop:
            return resize_positions(self.weight, self.size, size, self.prefix, self.resize)
        assert isinstance(size, tuple) and isinstance(self.size, tuple)  # a spectrogram has a grid
        if size[0] > self.size[0] or size[1] > self.size[1]:
            raise UserError(f"A grid of {size[0]} x {size[1]}, but there are positions for only {self.size}.")
        body = rearrange(self.weight[self.prefix :], "(r c) d -> r c d", r=self.size[0])
        columns = torch.arange(size[1], device=body.device)  # a slice would, exported, not serve all sizes
        body = body[: size[0]].index_select(1, columns)
        return torch.cat([self.weight[: self.prefix], body.flatten(0, 1)])


class FactorisedPositions(nn.Module):
    """A learned vector per row and one per column, whose sum is a patch's position (Dehghani et al. 2023, NaViT,
    section 3.2); both are interpolated linearly when asked for a grid other than their own.

    resize: only keep_aspect applies.
    """

    def __init__(self, dim: int, size: tuple[int, int], resize: PositionResize = DEFAULT_RESIZE):
        super().__init__()
        check_room(4 * dim * sum(size), f"A table of positions for size {size}", "choose a smaller size")
        self.resize = resize
        self.rows, self.columns = learned(size[0], dim), learned(size[1], dim)

    def forward(self, size: tuple[int, int]) -> Float[Tensor, "n d"]:
        height, width = self.resize.target(size)
        rows, columns = _interpolated(self.rows, height)[: size[0]], _interpolated(self.columns, width)[: size[1]]
        return (rows[:, None] + columns).flatten(0, 1)


def _interpolated(table: Float[Tensor, "n d"], length: int) -> Float[Tensor, "m d"]:
    if length == len(table):
        return table
    values = table.to(torch.promote_types(table.dtype, torch.float32))
    return F.interpolate(values.T[None], size=length, mode="linear")[0].T.to(table.dtype)


def resize_positions(
    weight: Float[Tensor, "n d"], old: Size, new: Size, prefix: int = 0, how: PositionResize = DEFAULT_RESIZE
) -> Float[Tensor, "m d"]:
    """Positions learned at size `old`, for size `new`.

    A grid is interpolated (bicubic and antialiased, as timm does, unless `how` says otherwise); a sequence is cut, and
    can't grow.
    """
    # The test is for a tuple, since the length of a sequence that is exported is no int, but a symbol.
    if not (isinstance(old, tuple) and isinstance(new, tuple)):
        if isinstance(old, tuple) or isinstance(new, tuple):
            raise UserError(f"Positions of size {old} cannot serve size {new}: one is a sequence, the other a grid.")
        if new > old:
            raise UserError(f"{new} tokens, but there are learned positions for only {old}.")
        return weight[: prefix + new]
    if old == new:
        return weight
    body = weight[prefix:].to(torch.promote_types(weight.dtype, torch.float32)).unflatten(0, old)
    with torch.autocast(weight.device.type, enabled=False):
        resized = _resize_grid(body, new, how).flatten(0, 1)
    return torch.cat([weight[:prefix], resized.to(weight.dtype)])


def _resize_grid(
    body: Float[Tensor, "r c d"], new: tuple[int, int], how: PositionResize
) -> Float[Tensor, "rows columns d"]:
    """A matrix for the rows, and one for the columns.

    `F.interpolate` does the same more slowly. It serves graphs, whose sizes may be symbols; one axis at a time, since
    it is wrong where both change and the new grid has one column (torch 2.14).
    """
    whole = how.target(new)
    if torch.compiler.is_compiling():
        body = rearrange(body, "r c d -> 1 d r c")
        for size in ((whole[0], body.shape[3]), whole):
            body = _interpolate(body, size, how)
        return rearrange(body, "1 d r c -> r c d")[: new[0], : new[1]]
    matrices = (_resizing(*sides, how) for sides in zip(body.shape[:2], whole, strict=True))
    rows, columns = (torch.from_numpy(m[:length]).to(body) for m, length in zip(matrices, new, strict=True))
    return columns @ (rows @ body.flatten(1)).unflatten(1, body.shape[1:])


@lru_cache(maxsize=1024)
def _resizing(old: int, new: int, how: PositionResize) -> Float[np.ndarray, "new old"]:
    """What each old value adds to each new one on an axis that is resized."""
    alone = torch.eye(old, dtype=torch.float64, device="cpu")[None, None]
    return _interpolate(alone, (new, old), how)[0, 0].numpy()


def _interpolate(body: Float[Tensor, "1 d r c"], size: tuple[int, int], how: PositionResize) -> Tensor:
    return F.interpolate(body, size=size, mode=how.mode, antialias=how.antialias, align_corners=how.align_corners)


class LearnedRotary(nn.Module):
    """Rotary frequencies of rows and columns, learned for each head (Heo et al. 2024, RoPE-Mixed, section 3.2).

    weight: what a step along the rows, and one along the columns, adds to the angle of each pair of features. At first
        half of the pairs turn along a random direction of the grid, the others across it.
    """

    def __init__(self, heads: int, head_dim: int, theta: float):
        super().__init__()
        if head_dim % 4:
            raise UserError(f"Rotary positions need heads of a width divisible by 4, not {head_dim}.")
        speeds = rotary_angles(torch.ones(1), head_dim // 4, theta)
        direction = torch.rand(heads, 1) * 2 * torch.pi
        angles = torch.cat([(direction + turn).expand(-1, head_dim // 4) for turn in (0, torch.pi / 2)], dim=1)
        self.weight = no_decay(nn.Parameter(torch.stack([angles.sin(), angles.cos()]) * speeds.repeat(1, 2)))

    def forward(
        self, coordinates: Sequence[Float[Tensor, "n"]]
    ) -> tuple[Float[Tensor, "h n c"], Float[Tensor, "h n c"]]:
        """The table for `rotate`; coordinates: of rows and columns."""
        rows, columns = (along[:, None] * each[:, None] for along, each in zip(coordinates, self.weight, strict=True))
        return turns(rows + columns)


def sincos_positions(dim: int, size: Size, theta: float = 10_000.0) -> Float[Tensor, "n d"]:
    """Fixed sines and cosines (Vaswani et al. 2017, section 3.5); half of `dim` for each axis of a grid."""
    return _sincos(dim, token_coordinates(size), theta)


def sincos_positions_of_row(dim: int, places: TokenPlaces, theta: float = 10_000.0) -> Float[Tensor, "n d"]:
    """`sincos_positions` for several sequences in a row, each on its own grid; 0 for prefix tokens."""
    positions = _sincos(dim, [places.row.float(), places.column.float()], theta)
    return positions.where(places.in_body[:, None], 0)


def _sincos(dim: int, coordinates: Sequence[Float[Tensor, "n"]], theta: float) -> Float[Tensor, "n d"]:
    axes = len(coordinates)
    if dim % (2 * axes):
        raise UserError(f"Sin-cos positions need a width divisible by {2 * axes}, not {dim}.")
    angles = [rotary_angles(coordinate, dim // axes // 2, theta) for coordinate in coordinates]
    return torch.cat([part for angle in angles for part in (angle.sin(), angle.cos())], dim=-1)
