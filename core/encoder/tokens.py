"""The tokens that the encoder takes and returns, whatever their modality."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from numbers import Integral
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..attention.packing import Packing, Selection, TokenPlaces
from ..errors import UserError
from ..private_torch import GetAttrKey, register_pytree_node


@dataclass(frozen=True)
class Tokens:
    """A batch of token sequences: one in each row, or several in one row.

    x: the tokens. The first `prefix` of each sequence are class or register tokens; the rest is the body.
    mask: True = a real token, False = padding; None = all real.
    grid: rows and columns of the body if it is an image or a spectrogram (row-major); None for a sequence.
    packing: where several sequences lie in the only row, each with its own length, prefix and grid (see `pack`). Then
        there is neither padding nor another prefix or grid.
    selection: which tokens are left of the whole sequences of a packed row, if others are masked; the packing says how
        many, without grids.
    """

    x: Float[Tensor, "b n d"]
    mask: Bool[Tensor, "b n"] | None = None
    grid: tuple[int, int] | None = None
    prefix: int = 0
    packing: Packing | None = None
    selection: Selection | None = None

    def __post_init__(self):
        if not torch.compiler.is_compiling():
            self._check()
        if self.packing is not None:
            self._check_packing(self.packing)
        if self.grid is not None and self.prefix + self.grid[0] * self.grid[1] != self.x.shape[1]:
            raise ValueError(
                f"Tokens: {self.prefix} prefix tokens and a grid of {self.grid[0]} x {self.grid[1]} "
                f"do not make {self.x.shape[1]} tokens."
            )

    def _check(self) -> None:
        x, mask, prefix = self.x, self.mask, self.prefix
        if not isinstance(x, Tensor) or x.ndim != 3 or not x.is_floating_point():
            raise UserError(f"Tokens: x must be features (samples, tokens, width), not {_described(x)}.")
        if mask is not None and (not isinstance(mask, Tensor) or mask.dtype != torch.bool or mask.shape != x.shape[:2]):
            raise UserError(
                f"Tokens: the mask must be boolean, True for a real token, and of shape {tuple(x.shape[:2])} as the "
                f"tokens are; not {_described(mask)}."
            )
        if not isinstance(prefix, Integral) or not 0 <= prefix <= x.shape[1]:
            raise UserError(f"Tokens: prefix must be a number from 0 to {x.shape[1]}, the tokens; not {prefix!r}.")
        grid: Any = self.grid
        sizes = grid if isinstance(grid, Sequence) else ()
        if grid is not None and not (len(sizes) == 2 and all(isinstance(n, Integral) and int(n) >= 0 for n in sizes)):
            raise UserError(f"Tokens: grid must be (rows, columns), whole numbers, not {grid!r}.")

    def with_x(self, x: Float[Tensor, "b n e"]) -> "Tokens":
        """The same tokens with other features."""
        return replace(self, x=x)

    def _check_packing(self, packing: Packing) -> None:
        if self.mask is not None or self.grid is not None or self.prefix:
            raise UserError("Tokens: a packed row has no padding mask, and the packing says its prefixes and grids.")
        if torch.compiler.is_compiling():
            return
        if self.x.shape[0] != 1 or self.x.shape[1] != packing.total:
            raise UserError(
                f"Tokens: {len(packing)} packed sequences of {packing.total} tokens together lie in one row, which has "
                f"as many tokens; not {self.x.shape[0]} rows of {self.x.shape[1]}."
            )

    @property
    def places(self) -> TokenPlaces:
        """Where each token of a packed row is, on the device of the tokens; of those left, in the whole sequences."""
        assert self.packing is not None
        if self.selection is not None:
            return self.selection.tokens()
        return self.packing.tokens_on(self.x.device, self.x.shape[1])

    def of_each_sequence(self, values: Float[Tensor, "s e"]) -> Float[Tensor, "b n e"] | Float[Tensor, "b 1 e"]:
        """A value of each sequence, for each of its tokens (or to broadcast to them)."""
        return values[:, None] if self.packing is None else values[self.places.sequence][None]

    @property
    def count(self) -> int:
        """Sequences of the batch."""
        return self.x.shape[0] if self.packing is None else len(self.packing.places)

    @property
    def body(self) -> Float[Tensor, "b m d"]:
        """The tokens without the prefix."""
        if self.packing is not None:
            return self.x[:, self.places.in_body]
        return self.x[:, self.prefix :]

    @property
    def maps(self) -> Float[Tensor, "b d rows columns"]:
        """The body as feature maps."""
        if self.grid is None:
            raise UserError("Tokens: only the tokens of a grid are maps; those of packed sequences are in `unpack`.")
        return self.body.mT.unflatten(2, self.grid)

    def without_prefix(self) -> "Tokens":
        """The body as tokens of their own."""
        if self.packing is None:
            return Tokens(self.body, mask=self.body_mask, grid=self.grid)
        places = self.packing.places - self.packing.prefixes[:, None] * torch.tensor([1, 1, 0, 0])
        return Tokens(self.body, packing=Packing(places))

    @property
    def body_mask(self) -> Bool[Tensor, "b m"] | None:
        return None if self.mask is None else self.mask[:, self.prefix :]


def _described(value: object) -> str:
    if not isinstance(value, Tensor):
        return f"a {type(value).__name__}"
    return f"a tensor of shape {tuple(value.shape)} and {value.dtype}"


LEAVES = ("x", "mask", "packing")


def _flatten(tokens: Tokens):
    # The dynamic shapes of an export have an entry for each leaf: two, unless the tokens are packed.
    leaves = (tokens.x, tokens.mask) if tokens.packing is None else (tokens.x, tokens.mask, tokens.packing)
    return leaves, (tokens.grid, tokens.prefix)


def _flatten_with_keys(tokens: Tokens):
    leaves, context = _flatten(tokens)
    return [(GetAttrKey(name), leaf) for name, leaf in zip(LEAVES, leaves, strict=False)], context


def _unflatten(leaves, context) -> Tokens:
    # Without __init__: torch.export temporarily puts other things than tensors here.
    tokens, (x, mask, *packing) = object.__new__(Tokens), leaves
    values = x, mask, packing[0] if packing else None, *context, None
    for name, value in zip((*LEAVES, "grid", "prefix", "selection"), values, strict=True):
        object.__setattr__(tokens, name, value)
    return tokens


# Lets torch.compile and torch.export take and return Tokens; grid and prefix are constants there.
register_pytree_node(
    Tokens,
    _flatten,  # pyright: ignore[reportArgumentType]  # it may return tuples, too
    _unflatten,
    flatten_with_keys_fn=_flatten_with_keys,  # pyright: ignore[reportArgumentType]  # keys of any kind
    serialized_type_name="trivium.Tokens",
)
