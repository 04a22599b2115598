"""Who may attend to whom, by position.

    Local(256) | PowersOfTwo() | Global(1)        any of them
    Local(256) & Causal()                         all of them

Patterns keep whole blocks of tokens unless told `exact=True`: that is what makes them fast, and the models they train
do not mind. `pattern.dense(length)` is the relation that is computed, to the token. `str` and `Pattern.parse` are
inverse.

Prefix tokens (class, registers) attend to all tokens and all attend to them; the rest, the body, is cut into blocks:
along the sequence, or into tiles of the grid if a pattern speaks of rows and columns.
"""

import ast
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import lru_cache, reduce
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int
from pydantic_core import core_schema
from torch import Tensor

from ..errors import UserError
from .layout import Grid, Layout, best_tile

BLOCK = 64  # tokens: smaller blocks cost more than they save, larger ones keep more pairs than they gain
MOST_STEP, MOST_DRAWN = 2**31, 2**12  # numpy counts in 64 bits; all that is drawn is held in memory
Blocks = Int[np.ndarray, "..."]  # numbers of blocks
Slots = Int[np.ndarray, "..."]  # places of tokens in the layout
Yes = Bool[np.ndarray, "..."]


class Pattern:
    """What the plan asks of a pattern. Arrays broadcast: `i`, `q` are queries, `j`, `k` keys."""

    on_grid = False  # speaks of rows and columns
    on_line = False  # speaks of single tokens of a sequence

    def layout(self, length: int, grid: Grid | None) -> Layout:
        """The blocks that this pattern is computed in; length: of the body, without global tokens."""
        if not self.on_grid:
            return Layout(length, BLOCK)
        if grid is None:
            raise UserError(f"{self} speaks of rows and columns, but the tokens are a sequence without a grid.")
        if self.on_line:
            raise UserError(f"{self} joins tiles of a grid with single tokens of a sequence (exact=True or Causal).")
        if grid[0] * grid[1] != length:
            raise UserError(f"{self}: Global tokens must not reach into a grid; leave them to the prefix tokens.")
        return Layout(length, BLOCK, grid, best_tile(grid[0], BLOCK))

    def pairs(self, layout: Layout) -> tuple[Blocks, Blocks]:
        """All block pairs with a pair of tokens that may attend, in time proportional to their number."""
        raise NotImplementedError

    def keep(self, layout: Layout, i: Blocks, j: Blocks) -> Yes:
        """Whether a block pair is among `pairs`."""
        raise NotImplementedError

    def full(self, layout: Layout, i: Blocks, j: Blocks) -> Yes:
        """Whether every token of a kept block pair may attend."""
        return np.ones(np.broadcast(i, j).shape, dtype=bool)

    def tokens(self, layout: Layout, q: Slots, k: Slots) -> Yes:
        """Which tokens may attend."""
        return self.keep(layout, q // layout.block, k // layout.block)

    def dense(self, size: int | Grid, prefix: int = 0) -> Bool[Tensor, "n n"]:
        """The whole relation among `prefix` and body tokens; size: of the body, a length or (rows, columns)."""
        grid = None if isinstance(size, int) else size
        body = size if grid is None else grid[0] * grid[1]
        allowed = np.zeros((prefix + body, prefix + body), dtype=bool)
        first = global_tokens(self, prefix, prefix + body)
        layout = self.layout(prefix + body - first, grid)
        place = np.argsort(layout.index, kind="stable")[-layout.length :] if layout.length else layout.index
        allowed[first:, first:] = self.tokens(layout, place[:, None], place[None, :])
        allowed[:first] = allowed[:, :first] = True
        if is_causal(self):
            allowed &= np.tri(prefix + body, dtype=bool)
        return torch.from_numpy(allowed)

    def show(self, size: int | Grid, prefix: int = 0, axis=None):
        """The relation as a picture on a matplotlib axis, by default one of a new figure; queries down, keys across."""
        import matplotlib.pyplot as plt

        axis = plt.subplots(figsize=(4, 4), layout="constrained")[1] if axis is None else axis
        axis.imshow(self.dense(size, prefix), cmap="Blues", interpolation="nearest")
        axis.set(title=str(self), xlabel="key", ylabel="query")
        return axis.figure

    def __or__(self, other: "Pattern") -> "Pattern":
        return Union((*_members(self, Union), *_members(other, Union)))

    def __and__(self, other: "Pattern") -> "Pattern":
        return Intersection((*_members(self, Intersection), *_members(other, Intersection)))

    def __str__(self) -> str:
        words = []
        for field in fields(self):
            value = getattr(self, field.name)
            if value != field.default:
                words.append(repr(value) if field.name in ("window", "radius", "blocks") else f"{field.name}={value!r}")
        return f"{type(self).__name__}({', '.join(words)})"

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> Any:
        """In a config, a pattern is itself or its text."""
        return core_schema.no_info_plain_validator_function(_as_pattern)

    @staticmethod
    @lru_cache(maxsize=256)
    def parse(text: str) -> "Pattern":
        """A pattern from its text."""
        try:
            return _build(ast.parse(text.strip(), mode="eval").body)
        except UserError:
            raise
        except (SyntaxError, TypeError, KeyError, ValueError, RecursionError, MemoryError):
            names = ", ".join(sorted(NAMES))
            raise UserError(
                f"{text!r} is not a pattern: write it like 'Local(256) | Global(1)', of {names}, joined by | and &."
            ) from None


@dataclass(frozen=True)
class Local(Pattern):
    """A window of `window` tokens in all, half of it to each side (Beltagy et al. 2020, section 3.1)."""

    window: int
    exact: bool = False

    def __post_init__(self):
        _check_whole(self, "window")

    @property
    def on_line(self) -> bool:
        return self.exact

    def pairs(self, layout: Layout) -> tuple[Blocks, Blocks]:
        reach = self._reach(layout)
        return _by_offset(layout, np.arange(-reach, reach + 1))

    def keep(self, layout: Layout, i: Blocks, j: Blocks) -> Yes:
        return np.abs(i - j) <= self._reach(layout)

    def full(self, layout: Layout, i: Blocks, j: Blocks) -> Yes:
        farthest = np.abs(i - j) * layout.block + layout.block - 1
        return (farthest <= self.window // 2) | (not self.exact)

    def tokens(self, layout: Layout, q: Slots, k: Slots) -> Yes:
        return np.abs(q - k) <= self.window // 2 if self.exact else super().tokens(layout, q, k)

    def _reach(self, layout: Layout) -> int:
        return min(-(-(self.window // 2) // layout.block), layout.blocks)


@dataclass(frozen=True)
class Dilated(Pattern):
    """As Local, but every `step`-th block (or token, if exact): a window `step` times as wide at the same cost."""

    window: int
    step: int = 2
    exact: bool = False

    def __post_init__(self):
        _check_whole(self, "window")
        _check_whole(self, "step", most=MOST_STEP)

    @property
    def on_line(self) -> bool:
        return self.exact

    def pairs(self, layout: Layout) -> tuple[Blocks, Blocks]:
        reach = self._reach(layout)
        offsets = np.arange(-reach, reach + 1)
        return _by_offset(layout, offsets[self.keep(layout, offsets, np.zeros_like(offsets))])

    def keep(self, layout: Layout, i: Blocks, j: Blocks) -> Yes:
        apart = np.abs(i - j)
        if not self.exact:
            return (apart % self.step == 0) & (apart <= self._reach(layout))
        nearest, farthest = np.maximum((apart - 1) * layout.block + 1, 0), (apart + 1) * layout.block - 1
        farthest = np.minimum(farthest, self.window // 2 * self.step)
        return farthest // self.step * self.step >= nearest

    def full(self, layout: Layout, i: Blocks, j: Blocks) -> Yes:
        return np.full(np.broadcast(i, j).shape, not self.exact)

    def tokens(self, layout: Layout, q: Slots, k: Slots) -> Yes:
        if not self.exact:
            return super().tokens(layout, q, k)
        apart = np.abs(q - k)
        return (apart % self.step == 0) & (apart <= self.window // 2 * self.step)

    def _reach(self, layout: Layout) -> int:
        half = self.window // 2
        reach = -(-half * self.step // layout.block) if self.exact else -(-half // layout.block) * self.step
        return min(reach, layout.blocks)


@dataclass(frozen=True)
class PowersOfTwo(Pattern):
    """Blocks at distances 0, 1, 2, 4, 8, ... to both sides: about 2 log2(n) of them, and every one in log2(n) steps."""

    def pairs(self, layout: Layout) -> tuple[Blocks, Blocks]:
        powers = 1 << np.arange(max(layout.blocks - 1, 1).bit_length())
        return _by_offset(layout, np.concatenate([-powers[::-1], [0], powers]))

    def keep(self, layout: Layout, i: Blocks, j: Blocks) -> Yes:
        apart = np.abs(i - j)
        return (apart & (apart - 1)) == 0


@dataclass(frozen=True)
class Random(Pattern):
    """Each block draws `blocks` of those before it from `seed`, and both attend to each other.

    Zaheer et al. 2020 (section 2) draw from all blocks; drawn like this, padding does not change who attends to whom.
    """

    blocks: int
    seed: int = 0

    def __post_init__(self):
        _check_whole(self, "blocks", most=MOST_DRAWN)
        _check_whole(self, "seed", least=0)

    def pairs(self, layout: Layout) -> tuple[Blocks, Blocks]:
        drawn = self._drawn(layout)
        return drawn // layout.blocks, drawn % layout.blocks

    def keep(self, layout: Layout, i: Blocks, j: Blocks) -> Yes:
        return np.isin(i * layout.blocks + j, self._drawn(layout))

    def _drawn(self, layout: Layout) -> Int[np.ndarray, "pairs"]:
        """Block pairs as i * blocks + j."""
        i = np.arange(layout.blocks)[:, None]
        j = (np.random.default_rng(self.seed).random((layout.blocks, self.blocks)) * (i + 1)).astype(np.int64)
        return np.unique(np.stack([i * layout.blocks + j, j * layout.blocks + i]).ravel())


@dataclass(frozen=True)
class Window2d(Pattern):
    """Grid neighbours up to `radius` rows and columns away."""

    radius: int
    exact: bool = False
    on_grid = True

    def __post_init__(self):
        _check_whole(self, "radius")

    def pairs(self, layout: Layout) -> tuple[Blocks, Blocks]:
        rows, columns = (np.arange(-reach, reach + 1) for reach in self._reach(layout))
        return _by_tile_offset(layout, *(offset.ravel() for offset in np.meshgrid(rows, columns, indexing="ij")))

    def keep(self, layout: Layout, i: Blocks, j: Blocks) -> Yes:
        return reduce(np.logical_and, (a <= r for a, r in zip(layout.apart(i, j), self._reach(layout), strict=True)))

    def full(self, layout: Layout, i: Blocks, j: Blocks) -> Yes:
        farthest = [a * t + t - 1 for a, t in zip(layout.apart(i, j), layout.tile, strict=True)]
        return (np.maximum(*farthest) <= self.radius) | (not self.exact)

    def tokens(self, layout: Layout, q: Slots, k: Slots) -> Yes:
        if not self.exact:
            return super().tokens(layout, q, k)
        rows, columns = (np.abs(a - b) for a, b in zip(layout.place(q), layout.place(k), strict=True))
        return np.maximum(rows, columns) <= self.radius

    def _reach(self, layout: Layout) -> tuple[int, int]:
        return tuple(min(-(-self.radius // t), tiles) for t, tiles in zip(layout.tile, layout.tiles, strict=True))


@dataclass(frozen=True)
class Axial(Pattern):
    """Grid tokens in the same row or the same column (Ho et al. 2019); time x frequency in sound."""

    exact: bool = False
    on_grid = True

    def pairs(self, layout: Layout) -> tuple[Blocks, Blocks]:
        rows, columns = np.arange(1 - layout.tiles[0], layout.tiles[0]), np.arange(1 - layout.tiles[1], layout.tiles[1])
        rows = rows[rows != 0]
        down = np.concatenate([np.zeros_like(columns), rows])
        return _by_tile_offset(layout, down, np.concatenate([columns, np.zeros_like(rows)]))

    def keep(self, layout: Layout, i: Blocks, j: Blocks) -> Yes:
        rows, columns = layout.apart(i, j)
        return (rows == 0) | (columns == 0)

    def full(self, layout: Layout, i: Blocks, j: Blocks) -> Yes:
        return np.full(np.broadcast(i, j).shape, not self.exact)

    def tokens(self, layout: Layout, q: Slots, k: Slots) -> Yes:
        if not self.exact:
            return super().tokens(layout, q, k)
        (q_rows, q_columns), (k_rows, k_columns) = layout.place(q), layout.place(k)
        return (q_rows == k_rows) | (q_columns == k_columns)


@dataclass(frozen=True)
class Causal(Pattern):
    """Nothing that comes later; always to the token."""

    on_line = True

    def pairs(self, layout: Layout) -> tuple[Blocks, Blocks]:
        return np.tril_indices(layout.blocks)

    def keep(self, layout: Layout, i: Blocks, j: Blocks) -> Yes:
        return j <= i

    def full(self, layout: Layout, i: Blocks, j: Blocks) -> Yes:
        return j < i

    def tokens(self, layout: Layout, q: Slots, k: Slots) -> Yes:
        return k <= q


@dataclass(frozen=True)
class Global(Pattern):
    """The first `count` tokens attend to all, and all attend to them; by default the encoder's prefix tokens."""

    count: int = 0

    def __post_init__(self):
        _check_whole(self, "count", least=0)

    def pairs(self, layout: Layout) -> tuple[Blocks, Blocks]:  # the plan treats global tokens apart from the blocks
        return np.zeros(0, dtype=int), np.zeros(0, dtype=int)

    def keep(self, layout: Layout, i: Blocks, j: Blocks) -> Yes:
        return np.zeros(np.broadcast(i, j).shape, dtype=bool)

    def __str__(self) -> str:
        return f"Global({self.count or ''})"


@dataclass(frozen=True)
class _Join(Pattern):
    members: tuple[Pattern, ...]

    @property
    def on_grid(self) -> bool:
        return any(member.on_grid for member in self.members)

    @property
    def on_line(self) -> bool:
        return any(member.on_line for member in self.members)

    def _each(self, method: str, *args: Any) -> list[Yes]:
        return [getattr(member, method)(*args) for member in self.members]


@dataclass(frozen=True)
class Union(_Join):
    """What any member allows; written with `|`."""

    def pairs(self, layout: Layout) -> tuple[Blocks, Blocks]:
        codes = [i * layout.blocks + j for i, j in (member.pairs(layout) for member in self.members)]
        codes = np.unique(np.concatenate(codes))
        return codes // layout.blocks, codes % layout.blocks

    def keep(self, layout: Layout, i: Blocks, j: Blocks) -> Yes:
        return reduce(np.logical_or, self._each("keep", layout, i, j))

    def full(self, layout: Layout, i: Blocks, j: Blocks) -> Yes:
        covers = [member.keep(layout, i, j) & member.full(layout, i, j) for member in self.members]
        return reduce(np.logical_or, covers)

    def tokens(self, layout: Layout, q: Slots, k: Slots) -> Yes:
        return reduce(np.logical_or, self._each("tokens", layout, q, k))

    def __str__(self) -> str:
        return " | ".join(map(str, self.members))


@dataclass(frozen=True)
class Intersection(_Join):
    """What all members allow; written with `&`."""

    def pairs(self, layout: Layout) -> tuple[Blocks, Blocks]:
        # Causal alone has pairs in the square of the blocks: the others are asked first.
        first = min(self.members, key=lambda member: isinstance(member, Causal))
        i, j = first.pairs(layout)
        kept = self.keep(layout, i, j)
        return i[kept], j[kept]

    def keep(self, layout: Layout, i: Blocks, j: Blocks) -> Yes:
        return reduce(np.logical_and, self._each("keep", layout, i, j))

    def full(self, layout: Layout, i: Blocks, j: Blocks) -> Yes:
        return reduce(np.logical_and, self._each("full", layout, i, j))

    def tokens(self, layout: Layout, q: Slots, k: Slots) -> Yes:
        return reduce(np.logical_and, self._each("tokens", layout, q, k))

    def __str__(self) -> str:
        return " & ".join(f"({member})" if isinstance(member, Union) else str(member) for member in self.members)


def global_tokens(pattern: Pattern, prefix: int, length: int) -> int:
    """How many tokens at the start are global: the prefix, and what `Global` asks for."""
    counts = [prefix]
    todo = [pattern]
    while todo:
        each = todo.pop()
        todo += each.members if isinstance(each, _Join) else ()
        if isinstance(each, Global):
            counts.append(each.count)
    return min(max(counts), length)


def is_causal(pattern: Pattern) -> bool:
    """Whether nothing later may be attended to, global tokens included."""
    if isinstance(pattern, Intersection):
        return any(map(is_causal, pattern.members))
    if isinstance(pattern, Union):
        return all(is_causal(member) for member in pattern.members if not isinstance(member, Global))
    return isinstance(pattern, Causal)


NAMES: dict[str, Callable[..., Pattern]] = {
    kind.__name__: kind for kind in (Local, Dilated, PowersOfTwo, Random, Window2d, Axial, Causal, Global)
}


def _as_pattern(value: Any) -> Pattern:
    if isinstance(value, str):
        return Pattern.parse(value)
    if not isinstance(value, Pattern):
        raise ValueError("a pattern is given as itself or as its text")
    return value


def _build(node: ast.expr) -> Pattern:
    match node:
        case ast.Call(func=ast.Name(id=name), args=args, keywords=keywords):
            named = {keyword.arg: ast.literal_eval(keyword.value) for keyword in keywords}
            return NAMES[name](*map(ast.literal_eval, args), **named)
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            return _build(left) | _build(right)
        case ast.BinOp(left=left, op=ast.BitAnd(), right=right):
            return _build(left) & _build(right)
    raise ValueError


def _members(pattern: Pattern, kind: type) -> tuple[Pattern, ...]:
    return pattern.members if isinstance(pattern, kind) else (pattern,)


def _check_whole(pattern: Pattern, *names: str, least: int = 1, most: int | None = None) -> None:
    for name in names:
        value = getattr(pattern, name)
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            wanted = f"a whole number of at least {least}"
            raise UserError(f"{type(pattern).__name__}: {name} must be {wanted}, not {value!r}.")
        if most is not None and value > most:
            raise UserError(f"{type(pattern).__name__}: {name} must be at most {most}, not {value}.")


def _by_offset(layout: Layout, offsets: Int[np.ndarray, "offsets"]) -> tuple[Blocks, Blocks]:
    """Each block paired with those `offsets` away, as far as they exist."""
    i = np.repeat(np.arange(layout.blocks), len(offsets))
    j = i + np.tile(offsets, layout.blocks)
    there = (j >= 0) & (j < layout.blocks)
    return i[there], j[there]


def _by_tile_offset(
    layout: Layout, down: Int[np.ndarray, "offsets"], right: Int[np.ndarray, "offsets"]
) -> tuple[Blocks, Blocks]:
    """Each tile paired with those `down` and `right` of it, as far as they exist."""
    i = np.repeat(np.arange(layout.blocks), len(down))
    rows, columns = layout.tile_of(i)
    rows, columns = rows + np.tile(down, layout.blocks), columns + np.tile(right, layout.blocks)
    there = (rows >= 0) & (rows < layout.tiles[0]) & (columns >= 0) & (columns < layout.tiles[1])
    return i[there], (columns * layout.tiles[0] + rows)[there]
