"""The text encoder: BERT (Devlin et al. 2019) and its successors."""

from collections.abc import Mapping, Sequence
from dataclasses import field
from functools import partial
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from annotated_types import Interval
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from core import Encoder, EncoderConfig, HubModel, Tokens, UserError, from_dict, init_weights, make_norm, pool
from core.attention.packing import Packing
from core.config import BelowOne, Count, Natural, Size, Whole, configclass
from core.models.targets import Predicts, TargetConfig

from .embeddings import TextEmbedding
from .rows import Texts, end_texts, fill_texts, pack_like

Length = Annotated[Whole, Interval(ge=3, le=2**20)]  # the first and the last token, and one between them
OF_TOKENS = ("tags", "spans", "tokens")  # heads that say something of each token


@configclass
class TextConfig(TargetConfig):
    vocab_size: Count = 30_522
    """Tokens in the vocabulary."""
    max_length: Length = 512
    """Most tokens of a text, including its first and last special token."""
    embedding_dim: Size | None = None
    """Width of the token embeddings, which are projected to the encoder's width (ALBERT); None: no projection."""
    segments: Natural = 0
    """Number of segment embeddings (BERT: 2, for sentences A and B); 0 for none."""
    positions: Literal["learned", "none"] = "learned"
    """Positions added to the token embeddings; none where the encoder has rotary positions."""
    embedding_norm: bool = True
    """A norm after the embeddings are added up."""
    dropout: BelowOne = 0.0
    """Dropout of the embedded tokens."""
    padding: Natural | None = None
    """Token id that gets no position (RoBERTa); None: every token gets one."""
    end_token: Natural | None = None
    """Token id that ends a text: what follows the first of it is padding (CLIP); None: there is no such token."""
    filler: Natural | None = None
    """Token id that every text is filled up with to max_length; it is attended to (SigLIP). None: padding is masked."""
    pool: Literal["cls", "mean", "max", "last"] = "cls"
    """How tokens become one vector; last: the last one, its filler included."""
    pool_dense: bool = False
    """Whether what the head's dense layer makes of each token is pooled, not the tokens before it (EuroBERT)."""
    head: Literal["classes", "tags", "spans", "tokens", "none"] = "classes"
    """What the model predicts: a class (or a number), a class for each token (tags), the first and the last token of an
    answer (spans), masked tokens, or nothing (it returns features)."""
    classes: Count = 2
    """Number of classes; 1 to predict a number (or, multilabel, whether a text is of the one class)."""
    pairs: bool = False
    """Whether the model was trained on pairs of texts."""
    head_dense: bool = True
    """A dense layer with an activation before the last projection (BERT's pooler, or the transform of its head for
    masked tokens)."""
    head_bias: bool = True
    """Bias of the dense layer."""
    head_activation: Literal["tanh", "relu", "gelu", "gelu_tanh", "silu"] = "tanh"
    """Activation of the dense layer."""
    head_norm: bool = False
    """A norm after that activation."""
    head_dropout: BelowOne = 0.0
    """Dropout before the last projection."""
    head_out_bias: bool = True
    """Bias of the last projection of the head for masked tokens."""
    tie_weights: bool = True
    """The last projection of the head for masked tokens uses the token embeddings as its weight."""
    sentence_pool: Literal["cls", "mean", "max"] | None = None
    """How the tokens of a text become its sentence vector, if the model was trained for that; None: their mean."""
    sentence_width: Size | None = None
    """Width of a dense layer after that pooling; None for none."""
    sentence_activation: Literal["tanh", "relu", "gelu", "none"] = "tanh"
    """Activation of that layer."""
    sentence_norm: bool = True
    """Whether the sentence vector is normalised to length 1."""
    sentence_prompt: str = ""
    """Text put before each text that becomes a sentence vector."""
    encoder: EncoderConfig = field(default_factory=EncoderConfig)

    def __post_init__(self):
        if self.head in ("classes", "tags") and self.labels and len(self.labels) != self.classes:
            raise UserError(f"TextConfig: {len(self.labels)} labels for {self.classes} classes: name all or none.")

    @property
    def predicts_number(self) -> bool:
        return self.head == "classes" and super().predicts_number


class Head(nn.Module):
    """[dense -> activation -> norm ->] dropout -> projection; without a projection if the model returns features."""

    ACTIVATIONS = {
        "tanh": torch.tanh,
        "relu": F.relu,
        "gelu": F.gelu,
        "gelu_tanh": partial(F.gelu, approximate="tanh"),
        "silu": F.silu,
    }

    def __init__(self, config: TextConfig):
        super().__init__()
        dim = config.encoder.dim
        width = (config.embedding_dim or dim) if config.head == "tokens" else dim
        if width != dim and not config.head_dense:
            raise UserError(
                "TextConfig: to predict masked tokens, an embedding_dim other than dim needs head_dense=True."
            )
        of_classes = {"classes": config.classes, "tags": config.classes, "spans": 2}
        outputs = {**of_classes, "tokens": config.vocab_size, "none": 0}[config.head]
        self.dense = nn.Linear(dim, width, bias=config.head_bias) if config.head_dense else None
        self.activation = self.ACTIVATIONS[config.head_activation]
        self.norm = make_norm(config.encoder, width) if config.head_dense and config.head_norm else nn.Identity()
        self.dropout = nn.Dropout(config.head_dropout)
        bias = config.head != "tokens" or config.head_out_bias
        self.out = nn.Linear(width, outputs, bias=bias) if outputs else nn.Identity()
        init_weights(self)

    def transform(self, x: Float[Tensor, "*b d"]) -> Float[Tensor, "*b e"]:
        """The input of the last projection."""
        return x if self.dense is None else self.norm(self.activation(self.dense(x)))

    def forward(self, x: Float[Tensor, "*b d"]) -> Float[Tensor, "*b outputs"]:
        return self.out(self.dropout(self.transform(x)))


class TextEncoder(nn.Module, Predicts, HubModel, library_name="trivium", tags=["text-encoder"]):
    """Token ids to logits: "texts classes"; for the heads of tokens "rows n outputs", or those of the tokens asked for.

    The texts are a padded batch, ids "b n" with a padding mask (None: there is no padding); or several in one row
    without padding, ids "1 n" with a `Packing`; or a list of ids "n" of any lengths, which become such a row.
    """

    def __init__(self, config: TextConfig | Mapping[str, Any]):
        super().__init__()
        self.config = config = from_dict(TextConfig, config)
        width = config.embedding_dim or config.encoder.dim
        self.embed = TextEmbedding(
            config.encoder.dim,
            vocab_size=config.vocab_size,
            max_length=config.max_length,
            embedding_dim=config.embedding_dim,
            segments=config.segments,
            positions=config.positions,
            padding=config.padding,
            norm=make_norm(config.encoder, width) if config.embedding_norm else None,
            dropout=config.dropout,
        )
        self.encoder = Encoder(config.encoder)
        width = config.sentence_width
        self.sentence_dense = None if width is None else nn.Linear(config.encoder.dim, width)
        if self.sentence_dense is not None and config.head != "none":  # it has no part in what the head predicts
            self.sentence_dense.requires_grad_(False)
        self.head = Head(config)
        if config.head == "tokens" and config.tie_weights:
            self.head.out.weight = self.embed.words.weight

    def tokens(
        self,
        ids: Int[Tensor, "b n"] | Texts,
        mask: Bool[Tensor, "b n"] | Packing | None = None,
        segments: Int[Tensor, "b n"] | Texts | None = None,
    ) -> Tokens:
        if self.config.end_token is not None:
            ids, mask = end_texts(ids, mask, self.config.end_token)
        if self.config.filler is not None:
            if segments is not None:
                raise UserError("Texts that are filled up have no segments: leave them out.")
            ids, mask = fill_texts(ids, mask, self.config.filler, self.config.max_length), None
        return self.embed(ids, mask, segments)

    def encode(
        self,
        ids: Int[Tensor, "b n"] | Texts,
        mask: Bool[Tensor, "b n"] | Packing | None = None,
        segments: Int[Tensor, "b n"] | Texts | None = None,
    ) -> Tokens:
        return self.encoder(self.tokens(ids, mask, segments))

    def intermediate(
        self,
        ids: Int[Tensor, "b n"] | Texts,
        mask: Bool[Tensor, "b n"] | Packing | None = None,
        segments: Int[Tensor, "b n"] | Texts | None = None,
        *,
        layers: Sequence[int],
        norm: bool = False,
    ) -> list[Tokens]:
        """The tokens after some layers (see `Encoder.intermediate`)."""
        return self.encoder.intermediate(self.tokens(ids, mask, segments), layers, norm=norm)

    def features(
        self,
        ids: Int[Tensor, "b n"] | Texts,
        mask: Bool[Tensor, "b n"] | Packing | None = None,
        segments: Int[Tensor, "b n"] | Texts | None = None,
    ) -> Float[Tensor, "texts d"]:
        """One vector per text: the input of the last projection (BERT's pooled output)."""
        encoded = self.encode(ids, mask, segments)
        return pool(encoded, self.config.pool) if self.config.head in OF_TOKENS else self._features(encoded)

    def _features(self, encoded: Tokens) -> Float[Tensor, "texts d"]:
        if self.config.pool_dense:
            return pool(encoded.with_x(self.head.transform(encoded.x)), self.config.pool)
        return self.head.transform(pool(encoded, self.config.pool))

    def forward(
        self,
        ids: Int[Tensor, "b n"] | Texts,
        mask: Bool[Tensor, "b n"] | Packing | None = None,
        segments: Int[Tensor, "b n"] | Texts | None = None,
        where: Bool[Tensor, "b n"] | Sequence[Bool[Tensor, "_"]] | None = None,
    ) -> Float[Tensor, "texts classes"] | Float[Tensor, "chosen outputs"] | Float[Tensor, "rows n outputs"]:
        """where: the tokens whose logits are returned, such as the masked ones; all tokens if None."""
        encoded = self.encode(ids, mask, segments)
        if self.config.head in OF_TOKENS:
            if not isinstance(where, Tensor | None):
                if isinstance(ids, Tensor) or encoded.packing is None:
                    raise UserError("`where` is a list, but the token ids are not: give both in the same way.")
                where = pack_like(encoded.packing, where, "`where`")
            return self.head(encoded.x if where is None else encoded.x[where])
        return self.head.out(self.head.dropout(self._features(encoded)))

    def pooled_texts(
        self, ids: Int[Tensor, "b n"] | Texts, mask: Bool[Tensor, "b n"] | Packing | None = None
    ) -> Float[Tensor, "texts d"]:
        """One vector per text that does not depend on the head; `features` come after its dense layer."""
        pooled = pool(self.encode(ids, mask), self.config.sentence_pool or "mean")
        if self.sentence_dense is None:
            return pooled
        how, dense = self.config.sentence_activation, self.sentence_dense(pooled)
        return dense if how == "none" else Head.ACTIVATIONS[how](dense)

    def sentence_vectors(
        self, ids: Int[Tensor, "b n"] | Texts, mask: Bool[Tensor, "b n"] | Packing | None = None
    ) -> Float[Tensor, "texts d"]:
        """One vector per text, for comparing texts. By default the mean of its tokens, normalised to length 1 (Reimers
        and Gurevych 2019, section 3)."""
        vectors = self.pooled_texts(ids, mask).float()
        return F.normalize(vectors, dim=-1) if self.config.sentence_norm else vectors
