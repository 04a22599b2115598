"""From word numbers to tokens."""

from jaxtyping import Bool, Int
from torch import Tensor, nn

from core import LearnedPositions, Tokens, UserError, init_weights


class TextEmbedding(nn.Module):
    """A learned vector per word of the vocabulary, with positions, segments, a norm and a projection where asked for.

    embedding_dim: width of the vectors, projected to `dim` after the norm (ALBERT, section 3.1); None: `dim`, and no
        projection.
    segments: how many kinds of text a sequence is put together from (BERT's sentences A and B); 0 for none.
    positions: "learned", or "none" (rotary positions live in the encoder).
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
        norm: nn.Module | None = None,
        dropout: float = 0.0,
    ):
        super().__init__()
        width = embedding_dim or dim
        self.words = nn.Embedding(vocab_size, width)
        self.segments = nn.Embedding(segments, width) if segments else None
        self.positions = LearnedPositions(width, max_length) if positions == "learned" else None
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
        """segments: which text each word belongs to; all to the first if None."""
        if segments is not None and self.segments is None:
            raise UserError("These texts have segments, but the model has none: set its `segments`.")
        x = self.words(ids)
        if self.segments is not None:
            x = x + (self.segments.weight[0] if segments is None else self.segments(segments))
        if self.positions is not None:
            x = x + self.positions(ids.shape[1])
        return Tokens(self.projection(self.dropout(self.norm(x))), mask)
