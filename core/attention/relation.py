"""Who may attend to whom: one value for masks, biases, patterns and places."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..sparse import Pattern
from ..sparse.plan import pattern_mask
from .packing import Packing, Place, Selection


@dataclass(frozen=True, eq=False)
class Relation:
    """Which keys each query may attend to, and what is added to their logits. By default all keys, and nothing.

    mask: True = may be attended to; "b m" masks keys, "b h n m" (each axis may be 1) masks pairs.
    bias: added to the logits; -inf forbids a pair, as a mask does.
    pattern: who may attend to whom by position. Queries and keys of different lengths both start at the first position.
    prefix, grid: the first `prefix` tokens are class and register tokens; the others form a grid of (rows, columns), or
        a sequence if `grid` is None.
    packing: several sequences lie in the row, each with its own length, prefix and grid, and none attends to another.
        There is no mask then; the batch is one row, and a bias is a sequence of biases "1 h n m".
    key_packing: the sequences of the keys, if they are not those of the queries (cross-attention).
    selection: which tokens are left of the whole sequences, for biases by position. A pattern is a bias then.
    """

    mask: Bool[Tensor, "#b m"] | Bool[Tensor, "#b #h #n #m"] | None = None
    bias: Float[Tensor, "#b #h #n #m"] | Sequence[Float[Tensor, "1 _ _ _"]] | None = None
    pattern: Pattern | None = None
    prefix: int = 0
    grid: tuple[int, int] | None = None
    packing: Packing | None = None
    key_packing: Packing | None = None
    selection: Selection | None = None

    def __post_init__(self):
        if self.selection is not None and self.pattern is not None:
            raise ValueError(
                "Attention: a pattern is about the positions of whole sequences, not of tokens left of them."
            )

    @property
    def pair_mask(self) -> Bool[Tensor, "#b #h #n #m"] | None:
        """The mask with all four axes."""
        return self.mask[:, None, None] if self.mask is not None and self.mask.ndim == 2 else self.mask

    @property
    def pair_bias(self) -> Float[Tensor, "#b #h #n #m"] | None:
        """The bias of a batch; a packed row has one for each sequence, see `bias_in_row`."""
        if self.bias is not None and not isinstance(self.bias, Tensor):
            raise ValueError("Attention: packed sequences have a bias each.")
        return self.bias

    def key_mask(self, k: Float[Tensor, "b h m c"]) -> Bool[Tensor, "#b m"] | None:
        """The mask of keys, if it does not differ by query or head."""
        pairs = self.pair_mask
        return None if pairs is None else pairs[:, 0, 0].expand(-1, k.shape[2])

    def allowed(self, q: Float[Tensor, "b h n c"], k: Float[Tensor, "b h m c"]) -> Bool[Tensor, "#b #h #n #m"] | None:
        """The pairs that mask, pattern and packing allow together; None for all."""
        if self.packing is not None:
            return self._allowed_in_row(q, k)
        mask = self.pair_mask
        if self.pattern is None:
            return mask
        n, m = q.shape[2], k.shape[2]
        near = pattern_mask(q if n >= m else k, self.pattern, self.prefix, self.grid)[None, None]
        near = near if n == m else near[:, :, :n, :m]
        return near if mask is None else mask & near

    def of_sample(self, number: int) -> "Relation":
        """That of one sample of a batch."""

        def own(t: Tensor | None) -> Tensor | None:
            return t if t is None or len(t) == 1 else t[number : number + 1]

        return replace(self, mask=own(self.mask), bias=own(self.pair_bias))

    @property
    def keys(self) -> Packing | None:
        """The sequences of the keys."""
        return self.packing if self.key_packing is None else self.key_packing

    def parts(self) -> Iterator[tuple[slice, slice, "Relation"]]:
        """For each sequence of a packed row its queries, its keys and their own relation."""
        assert self.packing is not None and self.keys is not None
        n = m = 0
        for number, (queries, keys) in enumerate(zip(self.packing, self.keys, strict=True)):
            bias = None if self.bias is None else self.bias[number]
            part = Relation(None, bias, self.pattern, *self.place(queries, keys))
            yield slice(n, n + queries.length), slice(m, m + keys.length), part
            n, m = n + queries.length, m + keys.length

    def place(self, queries: Place, keys: Place) -> tuple[int, tuple[int, int] | None]:
        """Prefix and grid of a sequence; only a sequence that attends to itself has a grid."""
        return (queries.prefix, queries.grid) if self.key_packing is None else (keys.prefix, None)

    def _allowed_in_row(self, q: Float[Tensor, "b h n c"], k: Float[Tensor, "b h m c"]) -> Bool[Tensor, "1 1 n m"]:
        allowed = torch.zeros(1, 1, q.shape[2], k.shape[2], dtype=torch.bool, device=q.device)
        for queries, keys, part in self.parts():
            own = part.allowed(q[:, :, queries], k[:, :, keys])
            allowed[:, :, queries, keys] = True if own is None else own
        return allowed

    def bias_in_row(
        self, q: Float[Tensor, "b h n c"], k: Float[Tensor, "b h m c"]
    ) -> Float[Tensor, "#b #h #n #m"] | None:
        """The bias of all pairs; 0 between the sequences of a row."""
        if self.packing is None or self.bias is None:
            return self.pair_bias
        whole = q.new_zeros(*q.shape[:3], k.shape[2])
        for queries, keys, part in self.parts():
            assert isinstance(part.bias, Tensor)
            whole[:, :, queries, keys] = part.bias.to(q.dtype)
        return whole


def with_biases(relation: Relation, biases: Tensor | Sequence[Tensor]) -> Relation:
    """The relation with biases added to its own; those of packed sequences one each."""
    if isinstance(biases, Tensor):
        own = relation.pair_bias
        return replace(relation, bias=biases if own is None else own + biases)
    if relation.bias is not None:
        biases = [own + bias for own, bias in zip(relation.bias, biases, strict=True)]
    return replace(relation, bias=biases)
