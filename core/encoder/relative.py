"""Learned biases of attention by relative position, and learned vectors of it."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..attention.disentangled import RelativePositions
from ..attention.packing import Place
from ..attention.relation import Relation, with_biases
from ..errors import UserError
from ..sparse import Pattern
from .init import constant, learned

Grid = tuple[int, int]
PARTS = 4  # outputs that are summed to each of a gate's two numbers
PREFIX = 3  # rows for prefix queries and patch keys, for patch queries and prefix keys, and for both in the prefix


class RelativeBias(nn.Module):
    """A bias for each head and each offset of two patches on a grid, and for prefix tokens (Bao et al. 2022, BEiT, as
    Liu et al. 2021, Swin, section 3.2).

    weight: of each offset, query minus key, row by row; then of prefix tokens to patches, of patches to prefix tokens,
        and of prefix tokens to each other.
    grid: the rows and columns that it is learned for; for others it is interpolated.
    """

    def __init__(self, heads: int, grid: Grid):
        super().__init__()
        self.grid = grid
        self.weight = nn.Parameter(torch.zeros(_offsets(grid)[0] * _offsets(grid)[1] + PREFIX, heads))

    def forward(self, relation: Relation, count: int) -> Relation:
        """The relation of `count` tokens to themselves, with these biases added to its own."""
        return with_biases(relation, _of_each(relation, count, lambda place: self.of(place.grid, place.prefix)))

    def of(self, grid: Grid | None, prefix: int) -> Float[Tensor, "1 h n n"]:
        if grid is None:
            raise UserError("Encoder: relative_bias needs tokens on a grid.")
        heads = self.weight.shape[1]
        table = self.weight[:-PREFIX].T.unflatten(1, _offsets(self.grid))
        if grid != self.grid:
            wide = table.to(torch.promote_types(table.dtype, torch.float32))
            table = F.interpolate(wide[None], size=_offsets(grid), mode="bilinear")[0].to(table.dtype)
        body = table.flatten(1)[:, _index(grid, table.device)]
        to_patches, from_patches, inside = self.weight[-PREFIX:, :, None, None].unbind()
        count = body.shape[1]
        top = torch.cat([inside.expand(heads, prefix, prefix), to_patches.expand(heads, prefix, count)], dim=2)
        rest = torch.cat([from_patches.expand(heads, count, prefix), body], dim=2)
        return torch.cat([top, rest], dim=1)[None]


class DistanceBias(nn.Module):
    """A bias for each head and each bucket of distances of two tokens in a sequence (Raffel et al. 2020, T5, section
    2.1). Prefix tokens have none.

    buckets: half of them are for keys that come after the query. In each half, half of the buckets are for one
        distance, and the others for ranges that grow with the distance, up to max_distance.
    """

    def __init__(self, heads: int, buckets: int, max_distance: int):
        super().__init__()
        if buckets < 4 or max_distance <= buckets // 4:
            raise UserError(
                "EncoderConfig: distance_bias needs 4 buckets or more, and a distance above a quarter of their number, "
                f"not {(buckets, max_distance)}."
            )
        self.max_distance = max_distance
        self.weight = learned(buckets, heads)

    def forward(self, relation: Relation, count: int) -> Relation:
        """The relation of `count` tokens to themselves, with these biases added to its own."""
        return with_biases(relation, self.of_each(relation, count))

    def of_each(self, relation: Relation, count: int) -> Float[Tensor, "1 h n n"] | list[Float[Tensor, "1 h _ _"]]:
        """The biases of `count` tokens to themselves; those of packed sequences one each."""
        return _of_each(relation, count, lambda place: self.of(place.length, place.prefix))

    def of(self, count: int, prefix: int) -> Float[Tensor, "1 h n n"]:
        body = count - prefix
        position = torch.arange(body, device=self.weight.device)
        of_offset = self.weight[self.bucket(torch.arange(-body, body, device=self.weight.device))]
        bias = of_offset.T[:, position - position[:, None] + body]
        return F.pad(bias, (prefix, 0, prefix, 0))[None]

    def bucket(self, offset: Int[Tensor, "n"]) -> Int[Tensor, "n"]:
        """The number of each offset's bucket; offset: key minus query."""
        half = len(self.weight) // 2
        single, distance = half // 2, offset.abs()
        # In single precision, as in transformers: at some distances another precision gives another bucket.
        growth = torch.log(distance.clamp(min=1).float() / single) / math.log(self.max_distance / single)
        far = (single + (growth * (half - single)).long()).clamp(max=half - 1)
        return torch.where(distance < single, distance, far) + half * (offset > 0)


class PositionVectors(nn.Module):
    """A learned vector for each bucket of relative positions in a sequence, normed, which each layer projects as it
    does tokens (He et al. 2021, DeBERTa, section 3.1; buckets as in version 2). Prefix tokens have none.

    buckets: to each side. Half of them are for one distance, and the others for ranges that grow with the distance, up
        to max_distance.
    """

    def __init__(self, norm: nn.Module, dim: int, buckets: int, max_distance: int):
        super().__init__()
        if buckets < 4 or max_distance <= buckets // 2 + 1:
            raise UserError(
                "EncoderConfig: disentangled needs 4 buckets or more, and a distance above half of their number, not "
                f"{(buckets, max_distance)}."
            )
        self.buckets, self.max_distance = buckets, max_distance
        self.weight = learned(2 * buckets, dim)
        self.norm = norm

    def forward(self, relation: Relation, count: int) -> RelativePositions:
        """Those of `count` tokens to themselves."""
        return RelativePositions(self.norm(self.weight), _of_each(relation, count, self._numbers))

    def _numbers(self, place: Place) -> Int[Tensor, "1 1 n n"]:
        position = torch.arange(place.length - place.prefix, device=self.weight.device)
        numbers = self.number(position[:, None] - position)
        return F.pad(numbers, (place.prefix, 0, place.prefix, 0), value=len(self.weight))[None, None]

    def number(self, offset: Int[Tensor, "*n"]) -> Int[Tensor, "*n"]:
        """The number of each offset's vector; offset: query minus key."""
        single, distance = self.buckets // 2, offset.abs()
        # In single precision, as in transformers: at some distances another precision gives another bucket.
        growth = torch.log(distance.clamp(min=1) / single) / torch.tensor((self.max_distance - 1) / single).log()
        far = (growth * (single - 1)).ceil().long() + single
        bucket = torch.where(distance <= single, distance, far) * offset.sign()
        return (bucket + self.buckets).clamp(0, len(self.weight) - 1)


class DistanceGate(nn.Module):
    """A gate of biases by distance: for each head a number of each query's token (Chen et al. 2022, WavLM).

    Each head's gate is made from its share of the token, by weights that all heads share, but for `scale`.
    """

    def __init__(self, dim: int, heads: int):
        super().__init__()
        if dim % heads:
            raise UserError(f"EncoderConfig: distance_gate needs a dim that {heads} heads divide, not {dim}.")
        self.heads = heads
        self.projection = nn.Linear(dim // heads, 2 * PARTS)
        self.scale = constant(heads, value=1.0)

    def forward(
        self,
        x: Float[Tensor, "b n d"],
        relation: Relation,
        biases: Float[Tensor, "1 h n n"] | Sequence[Float[Tensor, "1 h _ _"]],
    ) -> Relation:
        """The relation with these biases, times their gates, added to its own; those of packed sequences one each."""
        gates = self.of(x)[..., None]
        if relation.packing is None:
            assert isinstance(biases, Tensor)
            return with_biases(relation, gates * biases)
        parts = gates.split(relation.packing.lengths.tolist(), dim=2)
        return with_biases(relation, [gate * bias for gate, bias in zip(parts, biases, strict=True)])

    def of(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b h n"]:
        parts = self.projection(x.unflatten(2, (self.heads, -1))).unflatten(3, (2, PARTS))
        update, reset = parts.sum(dim=4).sigmoid().unbind(dim=3)
        return (update * (reset * self.scale - 1) + 2).mT


def _of_each(relation: Relation, count: int, of: Callable[[Place], Tensor]) -> Tensor | list[Tensor]:
    """What `count` tokens are to themselves, pair by pair; of packed sequences one each."""
    if relation.packing is None:
        return of(Place(count, relation.prefix, relation.grid))
    whole = relation.packing if relation.selection is None else relation.selection.whole
    kinds = {place: of(place) for place in dict.fromkeys(whole)}
    if relation.selection is None:
        return [kinds[place] for place in whole]
    left = relation.selection.of_each(relation.packing.lengths)
    return [kinds[place][:, :, index[:, None], index] for place, index in left]


def with_pattern(relation: Relation, pattern: Pattern | None) -> Relation:
    """The relation with a pattern. Where tokens are left of whole sequences, it is a bias by their positions there."""
    if relation.selection is None or pattern is None:
        return replace(relation, pattern=pattern)

    def forbids(place: Place) -> Float[Tensor, "1 1 n n"]:
        allowed = pattern.dense(place.grid or place.length - place.prefix, place.prefix)
        device = relation.selection.index.device  # pyright: ignore[reportOptionalMemberAccess]
        return torch.zeros(allowed.shape, device=device).masked_fill(~allowed.to(device), -torch.inf)[None, None]

    assert relation.packing is not None
    return with_biases(relation, _of_each(relation, relation.packing.total, forbids))


def _offsets(grid: Grid) -> Grid:
    return 2 * grid[0] - 1, 2 * grid[1] - 1


def _index(grid: Grid, device: torch.device) -> Int[Tensor, "n n"]:
    """The number of each pair's offset, query minus key. It is kept, unless a graph is traced: that has no numbers."""
    return (_made_index if torch.compiler.is_compiling() else _kept_index)(grid, device)


def _made_index(grid: Grid, device: torch.device) -> Int[Tensor, "n n"]:
    row, column = (axis.flatten() for axis in torch.meshgrid(*map(torch.arange, grid), indexing="ij"))
    rows, columns = (axis[:, None] - axis + size - 1 for axis, size in zip((row, column), grid, strict=True))
    return (rows * _offsets(grid)[1] + columns).to(device)


@lru_cache(maxsize=16)
@torch.inference_mode(False)  # what is kept may be part of a graph later
def _kept_index(grid: Grid, device: torch.device) -> Int[Tensor, "n n"]:
    return _made_index(grid, device)
