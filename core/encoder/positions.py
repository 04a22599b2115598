"""The position of a token: learned, sin-cos and rotary positions, on a line or on a grid, at any size.

A size is an int (a sequence) or (rows, columns) (a grid).
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from ..attention.packing import TokenPlaces
from ..attention.rotary import Size, count_tokens, rotary_angles, token_coordinates
from ..errors import UserError
from ..memory import check_room
from .init import learned


class LearnedPositions(nn.Module):
    """One learned vector per position, resized when asked for a grid other than its own.

    prefix: how many positions stand before the body (class and register tokens); they are never resized.
    crop: a smaller grid takes the first rows and columns, and none can be larger (a spectrogram's end is not its edge).
    """

    def __init__(self, dim: int, size: Size, prefix: int = 0, crop: bool = False):
        super().__init__()
        self.size, self.prefix, self.crop = size, prefix, crop
        check_room(
            4 * dim * (prefix + count_tokens(size)), f"A table of positions for size {size}", "choose a smaller size"
        )
        self.weight = learned(prefix + count_tokens(size), dim)

    def forward(self, size: Size) -> Float[Tensor, "n d"]:
        if not self.crop:
            return resize_positions(self.weight, self.size, size, self.prefix)
        assert isinstance(size, tuple) and isinstance(self.size, tuple)  # a spectrogram has a grid
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
    # The test is for a tuple, since the length of a sequence that is exported is no int, but a symbol.
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
