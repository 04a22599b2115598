"""Token ids are embedded."""

import torch.nn.functional as F
from jaxtyping import Bool, Int
from torch import Tensor, nn

from core import LearnedPositions, Tokens, UserError, init_weights


class TextEmbedding(nn.Module):
    """A learned vector per token of the vocabulary; optionally with positions, segments, a norm and a projection.

    embedding_dim: width of the vectors, projected to `dim` after the norm (ALBERT, section 3.1); None: `dim`, and no
        projection.
    segments: number of segments that a sequence may have (BERT's sentences A and B); 0 for none.
    positions: "learned", or "none" (rotary positions belong to the encoder).
    padding: a token id that gets no position, but the first vector of the table of positions; or None.
    norm: a norm as wide as the vectors, or None.
    """

    def __init__(
        self,
        dim: int,
        *,
        vocab_size: int,
        max_length: int,
        embedding_dim: int | None = None,
        segments: int = 0,
        positions: str = "learned",
        padding: int | None = None,
        norm: nn.Module | None = None,
        dropout: float = 0.0,
    ):
        super().__init__()
        width = embedding_dim or dim
        self.words = nn.Embedding(vocab_size, width)
        self.segments = nn.Embedding(segments, width) if segments else None
        prefix = 0 if padding is None else 1
        self.positions = LearnedPositions(width, max_length, prefix) if positions == "learned" else None
        self.padding = padding
        self.norm = norm or nn.Identity()
        self.dropout = nn.Dropout(dropout)
        self.projection = nn.Linear(width, dim) if embedding_dim else nn.Identity()
        init_weights(self)

    def forward(
        self,
        ids: Int[Tensor, "b n"],
        mask: Bool[Tensor, "b n"] | None = None,
        segments: Int[Tensor, "b n"] | None = None,
    ) -> Tokens:
        """segments: the segment of each token; the first one for all if None."""
        if segments is not None and self.segments is None:
            raise UserError("The texts have segments, but the model has none: set `segments` in its config.")
        x = self.words(ids)
        if self.segments is not None:
            x = x + (self.segments.weight[0] if segments is None else self.segments(segments))
        if self.positions is not None:
            table = self.positions(ids.shape[1])
            x = x + (table if self.padding is None else F.embedding(self.position_ids(ids), table))
        return Tokens(self.projection(self.dropout(self.norm(x))), mask)

    def position_ids(self, ids: Int[Tensor, "b n"]) -> Int[Tensor, "b n"]:
        """The row of each token in the table of positions: counted from 1, and 0 for padding."""
        real = ids != self.padding
        return real.cumsum(dim=1) * real
