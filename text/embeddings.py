"""Token ids are embedded."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from core import LearnedPositions, Tokens, UserError, init_weights
from core.attention.packing import Packing
from core.memory import check_room

from .rows import Texts, check_mask, check_row, pack_like, pack_texts


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
        size = 4 * width * (vocab_size + segments)
        check_room(size, "An embedding of so many tokens", "choose a smaller vocab_size")
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
        ids: Int[Tensor, "b n"] | Texts,
        mask: Bool[Tensor, "b n"] | Packing | None = None,
        segments: Int[Tensor, "b n"] | Texts | None = None,
    ) -> Tokens:
        """ids: a padded batch with its mask, one row of several texts with its packing, or a list of texts, which
        become such a row. segments: the segment of each token; the first one for all if None."""
        if segments is not None and self.segments is None:
            raise UserError("The texts have segments, but the model has none: set `segments` in its config.")
        if not isinstance(ids, Tensor):
            if mask is not None:
                raise UserError("A list of texts has no padding: leave out the mask.")
            ids, mask = pack_texts(ids)
            segments = None if segments is None else pack_like(mask, segments, "segments")
        elif isinstance(mask, Packing):
            check_row(ids, mask)
        elif mask is not None:
            check_mask(ids, mask)
        if not isinstance(segments, Tensor | None):
            raise UserError("The segments are a list, but the token ids are not: give both in the same way.")
        packing = mask if isinstance(mask, Packing) else None
        x = self.words(ids)
        if self.segments is not None:
            x = x + (self.segments.weight[0] if segments is None else self.segments(segments))
        if self.positions is not None:
            x = x + self._positions_of(self.positions, ids, packing)
        x = self.projection(self.dropout(self.norm(x)))
        return Tokens(x, None if isinstance(mask, Packing) else mask, packing=packing)

    def position_ids(self, ids: Int[Tensor, "b n"], packing: Packing | None = None) -> Int[Tensor, "b n"]:
        """The row of each token in the table of positions: counted from 1 in each text, and 0 for padding."""
        real = ids != self.padding
        count = real.cumsum(dim=1)
        if packing is not None:
            first = packing.starts.to(ids.device, non_blocking=True)[
                packing.tokens_on(ids.device, ids.shape[1]).sequence
            ]
            count = count - (count - real.to(count.dtype))[:, first]
        return count * real

    def _positions_of(
        self, positions: LearnedPositions, ids: Int[Tensor, "b n"], packing: Packing | None
    ) -> Float[Tensor, "#b n d"]:
        if packing is None:
            table = positions(ids.shape[1])
            return table[None] if self.padding is None else F.embedding(self.position_ids(ids), table)
        most = positions.size
        assert isinstance(most, int)  # a text is a sequence
        if not torch.compiler.is_compiling() and (packing.lengths > most).any():
            number = int((packing.lengths > most).nonzero()[0])
            raise UserError(
                f"Text {number + 1} of {len(packing)} has {packing.lengths[number]} tokens, but there are learned "
                f"positions for only {most}."
            )
        if self.padding is not None:
            return F.embedding(self.position_ids(ids, packing), positions(most))
        position = packing.tokens_on(ids.device, ids.shape[1]).position
        return F.embedding(position[None], positions(most))
