"""Rotary positions, on a line or on a grid (Su et al. 2021)."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ..errors import UserError
from .packing import Packing, TokenPlaces

Size = int | tuple[int, int]


def rotary_table(
    head_dim: int,
    size: Size,
    *,
    prefix: int = 0,
    theta: float = 10_000.0,
    unit: bool = False,
    reference: tuple[int, int] | None = None,
    device: torch.device | None = None,
) -> tuple[Float[Tensor, "n c"], Float[Tensor, "n c"]]:
    """Cosines and sines for `rotate` (Su et al. 2021, section 3.4).

    On a grid the first half of the frequencies is for rows, the second for columns. Prefix tokens are not rotated.
    unit: coordinates run from -1 to 1 over the grid, with a period of 2 pi (DINOv3); else they count tokens.
    reference: coordinates are scaled to those of a grid of so many rows and columns (EVA-02).
    """
    extents = size if isinstance(size, tuple) else (size,)
    coordinates = _scaled(token_coordinates(size, device), extents, unit, reference)
    angles = F.pad(_angles(head_dim, coordinates, theta), (0, 0, prefix, 0)).repeat(1, 2)
    return angles.cos(), angles.sin()


def rotary_table_of_row(
    head_dim: int,
    packing: Packing,
    places: TokenPlaces,
    *,
    on_grid: bool,
    theta: float = 10_000.0,
    unit: bool = False,
    reference: tuple[int, int] | None = None,
) -> tuple[Float[Tensor, "n c"], Float[Tensor, "n c"]]:
    """`rotary_table` for several sequences in a row; on_grid: on the grid of each, or else on a line."""
    numbers = (places.row, places.column) if on_grid else (places.position,)
    coordinates = [number.float() for number in numbers]
    if unit or reference:
        sizes = packing.places[:, 2:].to(places.sequence.device, non_blocking=True)
        coordinates = _scaled(coordinates, sizes[places.sequence].float().unbind(dim=1), unit, reference)
    angles = (_angles(head_dim, coordinates, theta) * places.in_body[:, None]).repeat(1, 2)
    return angles.cos(), angles.sin()


def _scaled(
    coordinates: Sequence[Float[Tensor, "n"]],
    extents: Sequence[int | Float[Tensor, "n"]],
    unit: bool,
    reference: tuple[int, int] | None,
) -> Sequence[Float[Tensor, "n"]]:
    """Coordinates that count tokens, in the units of `rotary_table`; extents: of the grid."""
    if unit:
        return [_in_unit(c, n) for c, n in zip(coordinates, extents, strict=True)]
    if reference is None:
        return coordinates
    return [c / n * size for c, n, size in zip(coordinates, extents, reference, strict=True)]


def _in_unit(coordinate: Float[Tensor, "n"], extent: int | Float[Tensor, "n"]) -> Float[Tensor, "n"]:
    return 2 * math.pi * ((coordinate + 0.5) / extent * 2 - 1)


def _angles(head_dim: int, coordinates: Sequence[Float[Tensor, "n"]], theta: float) -> Float[Tensor, "n k"]:
    axes = len(coordinates)
    if head_dim % (2 * axes):
        raise UserError(f"Rotary positions need heads of a width divisible by {2 * axes}, not {head_dim}.")
    return torch.cat([rotary_angles(c, head_dim // axes // 2, theta) for c in coordinates], dim=-1)


def rotate(
    x: Float[Tensor, "b h n c"], table: tuple[Float[Tensor, "n c"], Float[Tensor, "n c"]]
) -> Float[Tensor, "b h n c"]:
    """Rotate each pair (i, i + c/2) of features by the angle of its position."""
    cos, sin = table
    first, second = x.chunk(2, dim=-1)
    return (x * cos + torch.cat([-second, first], dim=-1) * sin).to(x.dtype)


def count_tokens(size: Size) -> int:
    return size[0] * size[1] if isinstance(size, tuple) else size


def token_coordinates(size: Size, device: torch.device | None = None) -> Sequence[Float[Tensor, "n"]]:
    """Each token's coordinate along each axis, row-major."""
    extents = size if isinstance(size, tuple) else (size,)
    axes = [torch.arange(n, dtype=torch.float32, device=device) for n in extents]
    return [axis.flatten() for axis in torch.meshgrid(*axes, indexing="ij")]


def rotary_angles(coordinate: Float[Tensor, "n"], count: int, theta: float) -> Float[Tensor, "n k"]:
    """`coordinate` at `count` frequencies from 1 falling towards 1 / theta."""
    exponents = torch.arange(count, dtype=torch.float32, device=coordinate.device) / count
    return coordinate[:, None] / theta**exponents
