"""Queries and keys that meet vectors of their relative position (He et al. 2021, DeBERTa, section 3.1)."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

TERMS = 3  # summed to a logit: content to content, content to position, position to content


@dataclass(frozen=True, eq=False)
class RelativePositions:
    """Vectors of relative positions, and which of them is that of each query and key.

    numbers: for each query and key the index of its vector, or len(vectors) for a vector of zeros; for packed sequences
    one such tensor each.
    """

    vectors: Float[Tensor, "o d"]
    numbers: Int[Tensor, "1 1 n n"] | Sequence[Int[Tensor, "1 1 _ _"]]


def position_biases(
    q: Float[Tensor, "b h n c"],
    k: Float[Tensor, "b h n c"],
    to_keys: Float[Tensor, "h o c"],
    to_queries: Float[Tensor, "h o c"],
    numbers: Int[Tensor, "1 1 n n"] | Sequence[Int[Tensor, "1 1 _ _"]],
    scale: float,
) -> Float[Tensor, "b h n n"] | list[Float[Tensor, "1 h _ _"]]:
    """The logits of queries with positions, and of positions with keys; those of packed sequences one each.

    to_keys, to_queries: the vectors of relative positions as keys, which queries meet, and as queries.
    """
    to_keys, to_queries = (F.pad(t, (0, 0, 0, 1)) for t in (to_keys, to_queries))  # the last one is of none
    if isinstance(numbers, Tensor):
        return _biases(q, k, to_keys, to_queries, numbers, scale)
    lengths = [each.shape[2] for each in numbers]
    parts = zip(q.split(lengths, dim=2), k.split(lengths, dim=2), numbers, strict=True)
    return [_biases(queries, keys, to_keys, to_queries, each, scale) for queries, keys, each in parts]


def _biases(q: Tensor, k: Tensor, to_keys: Tensor, to_queries: Tensor, numbers: Tensor, scale: float) -> Tensor:
    shape = (*q.shape[:3], k.shape[2])
    from_queries = (q @ to_keys.mT).gather(3, numbers.expand(shape))
    from_keys = (k @ to_queries.mT).gather(3, numbers.mT.expand(shape)).mT
    return scale * (from_queries + from_keys)
