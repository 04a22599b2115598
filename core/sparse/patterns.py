"""The kinds of patterns: windows, strides, random blocks, grid neighbours, causal and global attention."""

from dataclasses import dataclass
from functools import reduce

import numpy as np
from jaxtyping import Int

from ..errors import UserError
from .layout import Layout
from .pattern import KINDS, Blocks, Pattern, Slots, Yes

MOST_STEP, MOST_DRAWN = 2**31, 2**12  # numpy counts in 64 bits; all that is drawn is in memory


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
        rows, columns = (min(-(-self.radius // t), tiles) for t, tiles in zip(layout.tile, layout.tiles, strict=True))
        return rows, columns


@dataclass(frozen=True)
class Axial(Pattern):
    """Grid tokens in the same row or the same column (Ho et al. 2019); time x frequency in audio."""

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
    """No query attends to a later key; always exact to the token."""

    on_line = True
    causal = True

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
    only_global = True

    def __post_init__(self):
        _check_whole(self, "count", least=0)

    @property
    def global_count(self) -> int:
        return self.count

    def pairs(self, layout: Layout) -> tuple[Blocks, Blocks]:  # a plan treats global tokens separately
        return np.zeros(0, dtype=int), np.zeros(0, dtype=int)

    def keep(self, layout: Layout, i: Blocks, j: Blocks) -> Yes:
        return np.zeros(np.broadcast(i, j).shape, dtype=bool)

    def __str__(self) -> str:
        return f"Global({self.count or ''})"


KINDS.update({kind.__name__: kind for kind in (Local, Dilated, PowersOfTwo, Random, Window2d, Axial, Causal, Global)})


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
