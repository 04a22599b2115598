"""Who may attend to whom: one value for masks, biases, patterns and places."""

from dataclasses import dataclass

from jaxtyping import Bool, Float
from torch import Tensor

from ..sparse import Pattern
from ..sparse.plan import pattern_mask


@dataclass(frozen=True, eq=False)
class Relation:
    """Which keys each query may attend to, and what is added to their logits. By default all keys, and nothing.

    mask: True = may be attended to; "b m" masks keys, "b h n m" (each axis may be 1) masks pairs.
    bias: added to the logits; -inf forbids a pair, as a mask does.
    pattern: who may attend to whom by position. Queries and keys of different lengths both start at the first position.
    prefix, grid: the first `prefix` tokens are class and register tokens; the others form a grid of (rows, columns), or
        a sequence if `grid` is None.
    """

    mask: Bool[Tensor, "#b m"] | Bool[Tensor, "#b #h #n #m"] | None = None
    bias: Float[Tensor, "#b #h #n #m"] | None = None
    pattern: Pattern | None = None
    prefix: int = 0
    grid: tuple[int, int] | None = None

    @property
    def pair_mask(self) -> Bool[Tensor, "#b #h #n #m"] | None:
        """The mask with all four axes."""
        return self.mask[:, None, None] if self.mask is not None and self.mask.ndim == 2 else self.mask

    def key_mask(self, k: Float[Tensor, "b h m c"]) -> Bool[Tensor, "#b m"] | None:
        """The mask of keys, if it does not differ by query or head."""
        pairs = self.pair_mask
        return None if pairs is None else pairs[:, 0, 0].expand(-1, k.shape[2])

    def allowed(self, q: Float[Tensor, "b h n c"], k: Float[Tensor, "b h m c"]) -> Bool[Tensor, "#b #h #n #m"] | None:
        """The pairs that mask and pattern allow together; None for all."""
        mask = self.pair_mask
        if self.pattern is None:
            return mask
        n, m = q.shape[2], k.shape[2]
        near = pattern_mask(q if n >= m else k, self.pattern, self.prefix, self.grid)[None, None]
        near = near if n == m else near[:, :, :n, :m]
        return near if mask is None else mask & near
