"""Rotary positions, on a line or on a grid (Su et al. 2021)."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ..errors import UserError
from ..sparse.turns import Turned, serves, turned_by_operators
from .packing import Packing, TokenPlaces

Size = int | tuple[int, int]


def rotary_table(
    head_dim: int,
    size: Size,
    *,
    prefix: int = 0,
    theta: float = 10_000.0,
    offset: float = 0.0,
    unit: bool = False,
    reference: tuple[int, int] | None = None,
    device: torch.device | None = None,
) -> tuple[Float[Tensor, "n c"], Float[Tensor, "n c"]]:
    """Cosines and sines for `rotate` (Su et al. 2021, section 3.4).

    On a grid the first half of the frequencies is for rows, the second for columns. Prefix tokens are not rotated.
    offset: coordinates count tokens from this number (Perception Encoder: 1).
    unit: they run from -1 to 1 over the grid instead, with a period of 2 pi (DINOv3).
    reference: they are scaled to those of a grid of so many rows and columns (EVA-02).
    """
    coordinates = rotary_coordinates(size, prefix=prefix, offset=offset, unit=unit, reference=reference, device=device)
    return turns(coordinate_angles(head_dim, coordinates, theta))


def rotary_coordinates(
    size: Size,
    *,
    prefix: int = 0,
    offset: float = 0.0,
    unit: bool = False,
    reference: tuple[int, int] | None = None,
    device: torch.device | None = None,
) -> Sequence[Float[Tensor, "n"]]:
    """Each token's coordinate along each axis, as for `rotary_table`; 0 for prefix tokens."""
    extents = size if isinstance(size, tuple) else (size,)
    coordinates = _scaled(token_coordinates(size, device), extents, offset, unit, reference)
    return [F.pad(coordinate, (prefix, 0)) for coordinate in coordinates]


def rotary_coordinates_of_row(
    packing: Packing,
    places: TokenPlaces,
    *,
    on_grid: bool,
    offset: float = 0.0,
    unit: bool = False,
    reference: tuple[int, int] | None = None,
) -> Sequence[Float[Tensor, "n"]]:
    """`rotary_coordinates` for several sequences in a row; on_grid: on the grid of each, or else on a line."""
    numbers = (places.row, places.column) if on_grid else (places.position,)
    sizes: Sequence[Float[Tensor, "n"] | int] = [1] * len(numbers)
    if unit or reference:
        extents = packing.places[:, 2:].to(places.sequence.device, non_blocking=True)
        sizes = extents[places.sequence].float().unbind(dim=1)
    coordinates = _scaled([number.float() for number in numbers], sizes, offset, unit, reference)
    return [coordinate.where(places.in_body, 0) for coordinate in coordinates]


def turns(angles: Float[Tensor, "*h n k"]) -> tuple[Float[Tensor, "*h n c"], Float[Tensor, "*h n c"]]:
    """The table for `rotate` of an angle for each pair of features."""
    angles = torch.cat([angles, angles], dim=-1)
    return angles.cos(), angles.sin()


def _scaled(
    coordinates: Sequence[Float[Tensor, "n"]],
    extents: Sequence[int | Float[Tensor, "n"]],
    offset: float,
    unit: bool,
    reference: tuple[int, int] | None,
) -> Sequence[Float[Tensor, "n"]]:
    """Coordinates that count tokens from 0, in the units of `rotary_table`; extents: of the grid."""
    coordinates = [c + offset for c in coordinates] if offset else coordinates
    if unit:
        return [_in_unit(c, n) for c, n in zip(coordinates, extents, strict=True)]
    if reference is None:
        return coordinates
    return [c / n * size for c, n, size in zip(coordinates, extents, reference, strict=True)]


def _in_unit(coordinate: Float[Tensor, "n"], extent: int | Float[Tensor, "n"]) -> Float[Tensor, "n"]:
    return 2 * math.pi * ((coordinate + 0.5) / extent * 2 - 1)


def coordinate_angles(head_dim: int, coordinates: Sequence[Float[Tensor, "n"]], theta: float) -> Float[Tensor, "n k"]:
    """An angle for each pair of a head's features; the axes share them evenly."""
    axes = len(coordinates)
    if head_dim % (2 * axes):
        raise UserError(f"Rotary positions need heads of a width divisible by {2 * axes}, not {head_dim}.")
    return torch.cat([rotary_angles(c, head_dim // axes // 2, theta) for c in coordinates], dim=-1)


def rotate(
    x: Float[Tensor, "b h n c"], table: tuple[Float[Tensor, "*h n c"], Float[Tensor, "*h n c"]]
) -> Float[Tensor, "b h n c"]:
    """Rotate each pair (i, i + c/2) of features by the angle of its position; the table may differ by head."""
    cos, sin = table
    if serves(x, cos, sin):
        return Turned.apply(x, cos, sin, False)  # pyright: ignore[reportReturnType]
    return turned_by_operators(x, cos, sin)


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
