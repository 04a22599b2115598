"""What a pattern is: who may attend to whom, by position.

    Local(256) | PowersOfTwo() | Global(1)        any of them
    Local(256) & Causal()                         all of them

Patterns keep whole blocks of tokens unless they are made with `exact=True`: whole blocks are fast, and models trained
with them are as good. `pattern.dense(length)` is the exact relation that is computed. `str` and `Pattern.parse` are
inverse. patterns.py has the kinds.

Prefix tokens (class, registers) attend to all tokens and all attend to them. The rest, the body, is cut into blocks:
along the sequence, or into tiles of the grid if a pattern is about rows and columns.
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

# Tokens, a power of two: smaller blocks cost more than they save, larger ones keep more pairs than they gain. It is
# a part of what a pattern means to a trained model (docs/kernel.md).
BLOCK = 64
Blocks = Int[np.ndarray, "..."]  # numbers of blocks
Slots = Int[np.ndarray, "..."]  # places of tokens in the layout
Yes = Bool[np.ndarray, "..."]


class _Kinds(dict[str, Callable[..., "Pattern"]]):
    """A kind may be written anew, as in a notebook: what was made of its old meaning is forgotten."""

    def __setitem__(self, name: str, kind: Callable[..., "Pattern"]) -> None:
        super().__setitem__(name, kind)
        Pattern.parse.cache_clear()


KINDS = _Kinds()
"""What a text may name, and attention compute by; patterns.py fills it. One of your own: `KINDS["Mine"] = Mine`."""


class Pattern:
    """The methods that a plan is made from. Arrays broadcast: `i` and `q` are queries, `j` and `k` are keys.

    on_grid: it is about rows and columns. on_line: it is about single tokens of a sequence.
    causal: no query may attend to a later key; this holds for global tokens too.
    global_count: how many tokens at the start it makes global. only_global: it allows nothing else.
    """

    on_grid: bool = False
    on_line: bool = False
    causal: bool = False
    global_count: int = 0
    only_global: bool = False

    def num_global(self, prefix: int, length: int) -> int:
        """How many of `length` tokens are global: the prefix tokens, and what `Global` asks for."""
        return min(max(prefix, self.global_count), length)

    def layout(self, length: int, grid: Grid | None) -> Layout:
        """The blocks that this pattern is computed in; length: of the body, without global tokens."""
        if not self.on_grid:
            return Layout(length, BLOCK)
        if grid is None:
            raise UserError(f"{self} is about rows and columns, but the tokens are a sequence without a grid.")
        if self.on_line:
            raise UserError(f"{self} joins tiles of a grid with single tokens of a sequence (exact=True or Causal).")
        if grid[0] * grid[1] != length:
            raise UserError(f"{self}: Global tokens must not reach into a grid: use prefix tokens there.")
        return Layout(length, BLOCK, grid, best_tile(grid[0], BLOCK))

    def pairs(self, layout: Layout) -> tuple[Blocks, Blocks]:
        """All block pairs that hold a pair of tokens that may attend, in time proportional to their number."""
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
        grid, body = (None, size) if isinstance(size, int) else (size, size[0] * size[1])
        allowed = np.zeros((prefix + body, prefix + body), dtype=bool)
        num_global = self.num_global(prefix, prefix + body)
        layout = self.layout(prefix + body - num_global, grid)
        place = np.argsort(layout.index, kind="stable")[-layout.length :] if layout.length else layout.index
        allowed[num_global:, num_global:] = self.tokens(layout, place[:, None], place[None, :])
        allowed[:num_global] = allowed[:, :num_global] = True
        if self.causal:
            allowed &= np.tri(prefix + body, dtype=bool)
        return torch.from_numpy(allowed)

    def show(self, size: int | Grid, prefix: int = 0, axis=None):
        """Plot the relation on a matplotlib axis, by default one of a new figure: queries down, keys across."""
        import matplotlib.pyplot as plt

        axis = plt.subplots(figsize=(4, 4), layout="constrained")[1] if axis is None else axis
        axis.imshow(self.dense(size, prefix), cmap="Blues", interpolation="nearest")
        axis.set(title=str(self), xlabel="key", ylabel="query")
        return axis.figure

    def __or__(self, other: "Pattern") -> "Pattern":
        if not isinstance(other, Pattern):
            return NotImplemented
        return Union((*_members(self, Union), *_members(other, Union)))

    def __and__(self, other: "Pattern") -> "Pattern":
        if not isinstance(other, Pattern):
            return NotImplemented
        return Intersection((*_members(self, Intersection), *_members(other, Intersection)))

    def __str__(self) -> str:
        words = []
        for field in fields(self):  # pyright: ignore[reportArgumentType]  # every kind is a dataclass
            value = getattr(self, field.name)
            if value != field.default:
                words.append(repr(value) if field.name in ("window", "radius", "blocks") else f"{field.name}={value!r}")
        return f"{type(self).__name__}({', '.join(words)})"

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> Any:
        """A config takes a pattern or its text."""
        return core_schema.no_info_plain_validator_function(_as_pattern)

    @staticmethod
    @lru_cache(maxsize=256)
    def parse(text: str) -> "Pattern":
        """A pattern from its text."""
        try:
            return _build(ast.parse(text.strip(), mode="eval").body)
        except UserError:  # a pattern with wrong arguments
            raise
        except (SyntaxError, TypeError, KeyError, ValueError, RecursionError, MemoryError):
            names = ", ".join(sorted(KINDS))
            raise UserError(
                f"{text!r} is not a pattern: write it like 'Local(256) | Global(1)', of {names}, joined by | and &; a "
                "kind of your own is made known by core.sparse.KINDS['Mine'] = Mine."
            ) from None


@dataclass(frozen=True)
class _Join(Pattern):
    members: tuple[Pattern, ...]

    @property
    def on_grid(self) -> bool:
        return any(member.on_grid for member in self.members)

    @property
    def on_line(self) -> bool:
        return any(member.on_line for member in self.members)

    @property
    def global_count(self) -> int:
        return max(member.global_count for member in self.members)

    def _each(self, method: str, *args: Any) -> list[Yes]:
        return [getattr(member, method)(*args) for member in self.members]


@dataclass(frozen=True)
class Union(_Join):
    """What any member allows; written with `|`."""

    @property
    def causal(self) -> bool:
        members = [member for member in self.members if not member.only_global]
        return bool(members) and all(member.causal for member in members)

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

    @property
    def causal(self) -> bool:
        return any(member.causal for member in self.members)

    def pairs(self, layout: Layout) -> tuple[Blocks, Blocks]:
        # The pairs of Causal grow with the square of the blocks, so they are taken from another member if there is one.
        i, j = min(self.members, key=lambda member: member.causal).pairs(layout)
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


def _as_pattern(value: Any) -> Pattern:
    if isinstance(value, str):
        return Pattern.parse(value)
    if not isinstance(value, Pattern):
        raise ValueError("a pattern is given as a Pattern or as its text")
    return value


def _build(node: ast.expr) -> Pattern:
    match node:
        case ast.Call(func=ast.Name(id=name), args=args, keywords=keywords):
            named = {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in keywords}
            return KINDS[name](*map(ast.literal_eval, args), **named)
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            return _build(left) | _build(right)
        case ast.BinOp(left=left, op=ast.BitAnd(), right=right):
            return _build(left) & _build(right)
    raise ValueError


def _members(pattern: Pattern, kind: "type[_Join]") -> tuple[Pattern, ...]:
    return pattern.members if isinstance(pattern, kind) else (pattern,)
