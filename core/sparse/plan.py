"""Plans: which key blocks each query block attends to, for a pattern and so many tokens, or for several sequences.

Time and memory to make one grow with the number of block pairs that are kept.
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .layout import Grid, Layout
from .pattern import BLOCK, Pattern

WHOLE = (int, np.integer, torch.SymInt)
PLANS = 1024  # that are kept: a batch may have as many sequences, each of its own length


@dataclass(frozen=True, eq=False)
class Rows:
    """Query blocks with the same number of key blocks; they share one mask, or each has its own.

    mask: for the gathered keys; None if all of them count for every query.
    """

    rows: Int[Tensor, "rows"]
    columns: Int[Tensor, "rows keys"]
    mask: Bool[Tensor, "#rows #queries slots"] | None = None


@dataclass(frozen=True, eq=False)
class Plan:
    """How to attend by a pattern: the first `num_global` tokens are global, the others lie in `layout`.

    pattern: None if all keys are attended to; then there may be more or fewer queries than keys.
    length: of the queries. key_length: of the keys. pairs: query-key pairs computed, padding included.
    """

    pattern: Pattern | None
    length: int
    key_length: int
    num_global: int
    causal: bool
    layout: Layout
    groups: tuple[Rows, ...]
    index: Int[Tensor, "slots"]
    pairs: int

    @property
    def density(self) -> float:
        """Share of all pairs that is computed."""
        return self.pairs / max(self.length * self.key_length, 1)

    @property
    def query_blocks(self) -> int:
        return self.layout.blocks if self.pattern else -(-self.length // self.layout.block)


@dataclass(frozen=True, eq=False)
class PackedPlan:
    """The plans of several sequences that lie one behind the other in a row.

    plans: different ones. which: of them, each sequence has. length, key_length: of all sequences together.
    """

    plans: tuple[Plan, ...]
    which: Int[Tensor, "s"]
    length: int
    key_length: int

    def sum(self, name: str) -> int:
        """A number of the plans (length, pairs, ...), added up over the sequences."""
        each = torch.tensor([getattr(plan, name) for plan in self.plans], dtype=torch.int64)
        return int(each[self.which].sum())


def check_place(prefix: Any, grid: Any, length: int | None = None) -> None:
    """Raise a ValueError if `prefix` and `grid` do not fit `length` tokens.

    length: None if any number is right because no pattern needs the places; then the grid may be empty.
    """
    most = math.inf if length is None else length
    least = 0 if length is None else 1
    if not _is_whole(prefix) or not 0 <= prefix <= most:
        limit = "at least 0" if length is None else f"from 0 to {length}, the number of tokens"
        raise ValueError(f"Attention: prefix must be a whole number {limit}, not {prefix!r}.")
    if grid is None:
        return
    if not (isinstance(grid, tuple) and len(grid) == 2 and all(_is_whole(x) and x >= least for x in grid)):
        raise ValueError(f"Attention: grid must be (rows, columns), whole numbers of at least {least}, not {grid!r}.")
    if length is not None and prefix + grid[0] * grid[1] != length:
        made = f"{prefix} prefix tokens and a grid of {grid[0]} x {grid[1]}"
        raise ValueError(f"Attention: {made} do not make {length} tokens.")


def _is_whole(value: Any) -> bool:
    return isinstance(value, WHOLE) and not isinstance(value, bool)


@lru_cache(maxsize=PLANS)
def make_plan(pattern: Pattern, length: int, prefix: int = 0, grid: Grid | None = None) -> Plan:
    """The plan of `pattern` for `length` tokens, `prefix` included; grid: rows and columns of the body."""
    check_place(prefix, grid, length)
    num_global = pattern.num_global(prefix, length)
    body = length - num_global
    layout = pattern.layout(body, grid)
    i, j = pattern.pairs(layout)
    order = np.lexsort((j, i))
    i, j = i[order], j[order]
    counts = np.bincount(i, minlength=layout.blocks)
    starts = np.cumsum(counts) - counts
    partial = ~pattern.full(layout, i, j)
    empty = partial
    if len(j):
        empty = np.any((layout.index < 0).reshape(layout.blocks, layout.block), axis=1)[j]
    groups = []
    for count in np.unique(counts):
        rows = np.flatnonzero(counts == count)
        entries = starts[rows, None] + np.arange(count)
        groups += _split(pattern, layout, rows, j[entries], partial[entries], empty[entries])
    slots = sum(group.columns.numel() for group in groups) * layout.block**2
    pairs = slots + num_global * length + body * num_global
    index = torch.from_numpy(layout.index)
    return Plan(pattern, length, length, num_global, pattern.causal, layout, tuple(groups), index, pairs)


@lru_cache(maxsize=PLANS)
def whole_plan(length: int, key_length: int, block: int = 2 * BLOCK) -> Plan:
    """The plan by which every query attends to every key. block: nothing is left out by smaller ones."""
    layout = Layout(key_length, block)
    rows = torch.arange(-(-length // layout.block))
    columns = torch.arange(layout.blocks).expand(len(rows), -1)
    group = Rows(rows, columns)
    index = torch.from_numpy(layout.index)
    return Plan(None, length, key_length, 0, False, layout, (group,), index, length * key_length)


def _split(
    pattern: Pattern, layout: Layout, rows: np.ndarray, columns: np.ndarray, partial: np.ndarray, empty: np.ndarray
):
    """Rows with one number of key blocks, split by the mask that they need."""
    masked = np.any(partial | empty, axis=1)
    if not masked.all():
        yield _rows(rows[~masked], columns[~masked])
    # Where blocks have no empty slots, rows whose blocks are cut by the pattern in the same way share one mask.
    alike = masked & ~empty.any(axis=1)
    if alike.any():
        code = _displacement(layout, rows[alike, None], columns[alike]) * partial[alike] + ~partial[alike]
        _, group = np.unique(code, axis=0, return_inverse=True)
        for number in range(group.max() + 1):
            these = np.flatnonzero(alike)[group.ravel() == number]
            mask = _mask(pattern, layout, rows[these[:1]], columns[these[:1]])
            yield _rows(rows[these], columns[these], mask)
    own = masked & empty.any(axis=1)
    if own.any():
        mask = _mask(pattern, layout, rows[own], columns[own], keys_only=not partial[own].any())
        yield _rows(rows[own], columns[own], mask)


def _rows(rows: np.ndarray, columns: np.ndarray, mask: Tensor | None = None) -> Rows:
    return Rows(torch.from_numpy(rows), torch.from_numpy(columns), mask)


def _displacement(layout: Layout, i: np.ndarray, j: np.ndarray) -> np.ndarray:
    """A number (never 0 or 1) for the distance and direction from block i to block j."""
    if layout.grid is None:
        return 2 * (j - i + layout.blocks)
    (down, across), (rows, columns) = layout.tile_of(i), layout.tile_of(j)
    return (rows - down + layout.tiles[0]) * 2 * layout.tiles[1] + columns - across + layout.tiles[1]


def _mask(pattern: Pattern, layout: Layout, rows: np.ndarray, columns: np.ndarray, keys_only: bool = False) -> Tensor:
    within = np.arange(layout.block)
    keys = (columns[:, :, None] * layout.block + within).reshape(len(rows), 1, -1)
    mask = layout.index[keys] >= 0
    if not keys_only:
        mask = mask & pattern.tokens(layout, (rows[:, None] * layout.block + within)[:, :, None], keys)
    return torch.from_numpy(mask)


@torch.library.custom_op("trivium::pattern_mask", mutates_args=())
def _pattern_mask(q: Tensor, pattern: str, prefix: int, rows: int, columns: int) -> Tensor:
    """The whole relation for the tokens of q "b h n c", as "n n"."""
    grid = (rows, columns) if rows or columns else None
    check_place(prefix, grid, q.shape[2])
    size = q.shape[2] - prefix if grid is None else grid
    return _dense(Pattern.parse(pattern), size, prefix).to(q.device, copy=True)


@_pattern_mask.register_fake
def _(q, pattern, prefix, rows, columns):
    return q.new_empty(q.shape[2], q.shape[2], dtype=torch.bool)


def pattern_mask(q: Float[Tensor, "b h n c"], pattern: Pattern, prefix: int, grid: Grid | None) -> Bool[Tensor, "n n"]:
    """`pattern.dense` on q's device; under torch.compile too."""
    return _pattern_mask(q.detach(), str(pattern), prefix, *(grid or (0, 0)))


@lru_cache(maxsize=8)
def _dense(pattern: Pattern, size: int | Grid, prefix: int) -> Tensor:
    return pattern.dense(size, prefix)


def pattern_density(pattern: str, length: int, prefix: int, grid: Grid | None) -> float:
    """Share of all pairs that a plan computes."""
    return make_plan(Pattern.parse(pattern), length, prefix, grid).density
