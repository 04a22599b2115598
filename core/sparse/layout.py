"""The blocks that the body of a sequence is cut into: along the sequence, or tiles of a grid."""

import math
from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np
from jaxtyping import Int

Grid = tuple[int, int]


@dataclass(frozen=True)
class Layout:
    """Blocks hold `block` slots each; slots beyond the body's end or a grid's edge are empty.

    grid: rows and columns of the body, or None for a sequence. tile: of a block in a grid.
    """

    length: int
    block: int
    grid: Grid | None = None
    tile: Grid = (1, 1)

    @property
    def tiles(self) -> Grid:
        """Tiles down and across the grid."""
        assert self.grid is not None
        return -(-self.grid[0] // self.tile[0]), -(-self.grid[1] // self.tile[1])

    @property
    def blocks(self) -> int:
        return -(-self.length // self.block) if self.grid is None else self.tiles[0] * self.tiles[1]

    def tile_of(self, blocks: Int[np.ndarray, "..."]) -> tuple[Int[np.ndarray, "..."], Int[np.ndarray, "..."]]:
        """Row and column of a block's tile. Tiles are counted column by column, so that more columns of tokens do not
        change the numbers."""
        return blocks % self.tiles[0], blocks // self.tiles[0]

    def place(self, slots: Int[np.ndarray, "..."]) -> tuple[Int[np.ndarray, "..."], Int[np.ndarray, "..."]]:
        """Row and column of slots; empty ones are outside of the grid."""
        down, across = self.tile_of(slots // self.block)
        within = slots % self.block
        return down * self.tile[0] + within // self.tile[1], across * self.tile[1] + within % self.tile[1]

    def apart(
        self, i: Int[np.ndarray, "..."], j: Int[np.ndarray, "..."]
    ) -> tuple[Int[np.ndarray, "..."], Int[np.ndarray, "..."]]:
        """How many tiles down and across two blocks are apart."""
        (i_down, i_across), (j_down, j_across) = self.tile_of(i), self.tile_of(j)
        return np.abs(i_down - j_down), np.abs(i_across - j_across)

    @cached_property
    def index(self) -> Int[np.ndarray, "slots"]:
        """The body token in each slot, -1 where it is empty."""
        slots = np.arange(self.blocks * self.block)
        if self.grid is None:
            return np.where(slots < self.length, slots, -1)
        rows, columns = self.place(slots)
        inside = (rows < self.grid[0]) & (columns < self.grid[1])
        return np.where(inside, rows * self.grid[1] + columns, -1)

    @property
    def in_order(self) -> bool:
        """Whether slots hold the body's tokens in their own order."""
        return self.grid is None


@cache
def best_tile(rows: int, block: int) -> Grid:
    """The tile of `block` tokens that wastes few slots below the grid's last row and is near to a square.

    It depends on the rows alone, so that padding more columns, as clips of different lengths need, changes no block.
    """
    shapes = [(1 << power, block >> power) for power in range(block.bit_length())]

    def cost(tile: Grid) -> float:
        waste = -(-rows // tile[0]) * tile[0] / rows
        return waste * (1 + abs(math.log2(tile[0] / tile[1])) / 8)

    return min(shapes, key=cost)
