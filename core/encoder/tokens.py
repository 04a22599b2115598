"""The tokens that the encoder takes and returns, whatever their modality."""

from dataclasses import dataclass, replace

from jaxtyping import Bool, Float
from torch import Tensor

from ..private_torch import GetAttrKey, register_pytree_node


@dataclass(frozen=True)
class Tokens:
    """A batch of token sequences.

    x: the tokens. The first `prefix` of each sequence are class or register tokens; the rest is the body.
    mask: True = a real token, False = padding; None = all real.
    grid: rows and columns of the body if it is an image or a spectrogram (row-major); None for a sequence.
    """

    x: Float[Tensor, "b n d"]
    mask: Bool[Tensor, "b n"] | None = None
    grid: tuple[int, int] | None = None
    prefix: int = 0

    def __post_init__(self):
        if self.grid is not None and self.prefix + self.grid[0] * self.grid[1] != self.x.shape[1]:
            raise ValueError(
                f"Tokens: {self.prefix} prefix tokens and a grid of {self.grid[0]} x {self.grid[1]} "
                f"do not make {self.x.shape[1]} tokens."
            )

    def with_x(self, x: Float[Tensor, "b n e"]) -> "Tokens":
        """The same tokens with other features."""
        return replace(self, x=x)

    @property
    def body(self) -> Float[Tensor, "b m d"]:
        """The tokens without the prefix."""
        return self.x[:, self.prefix :]

    @property
    def body_mask(self) -> Bool[Tensor, "b m"] | None:
        return None if self.mask is None else self.mask[:, self.prefix :]


def _flatten(tokens: Tokens):
    return (tokens.x, tokens.mask), (tokens.grid, tokens.prefix)


def _flatten_with_keys(tokens: Tokens):
    leaves, context = _flatten(tokens)
    return [(GetAttrKey("x"), leaves[0]), (GetAttrKey("mask"), leaves[1])], context


def _unflatten(leaves, context) -> Tokens:
    # Without __init__: torch.export temporarily puts other things than tensors here.
    tokens = object.__new__(Tokens)
    for name, value in zip(("x", "mask", "grid", "prefix"), (*leaves, *context), strict=True):
        object.__setattr__(tokens, name, value)
    return tokens


# Lets torch.compile and torch.export take and return Tokens; grid and prefix are constants there.
register_pytree_node(
    Tokens,
    _flatten,  # pyright: ignore[reportArgumentType]  # it may return tuples, too
    _unflatten,
    flatten_with_keys_fn=_flatten_with_keys,
    serialized_type_name="trivium.Tokens",
)
