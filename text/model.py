"""The text encoder (BERT, Devlin et al. 2019) and its usual variants: RoBERTa, DistilBERT, ALBERT, ModernBERT."""

from collections.abc import Mapping
from dataclasses import field
from functools import partial
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from annotated_types import Interval
from jaxtyping import Bool, Float, Int
from pydantic import Strict
from torch import Tensor, nn

from core import Encoder, EncoderConfig, HubModel, Tokens, UserError, from_dict, init_weights, make_norm, pool
from core.config import BelowOne, Count, Natural, Size, Whole, configclass

from .embeddings import TextEmbedding

Length = Annotated[Whole, Interval(ge=3, le=2**20)]  # a text of no words is nothing but its frame
LARGEST = 1e100  # label that is a number; its square must not overflow


@configclass
class TextConfig:
    vocab_size: Count = 30_522
    """Words of the vocabulary."""
    max_length: Length = 512
    """Most tokens of a text, with the two that frame it."""
    embedding_dim: Size | None = None
    """Width of the word vectors, projected to the encoder's (ALBERT); None: the encoder's, and no projection."""
    segments: Natural = 0
    """Kinds of text that a sequence is put together from (BERT: 2); 0 for none."""
    positions: Literal["learned", "none"] = "learned"
    """Positions added to the words; none where the encoder has rotary ones."""
    embedding_norm: bool = True
    """A norm of the embedded words."""
    dropout: BelowOne = 0.0
    """Of the embedded words."""
    padding: Natural | None = None
    """Token id that takes no position, wherever it stands (RoBERTa); None: every token takes one."""
    pool: Literal["cls", "mean", "max"] = "cls"
    """How tokens become one vector."""
    head: Literal["classes", "tokens", "none"] = "classes"
    """What the model tells: a class (or a number), hidden words, or nothing (it gives features)."""
    classes: Count = 2
    """Number of classes; 1 to predict a number (or, multilabel, whether a text is of the one class)."""
    labels: tuple[str, ...] = ()
    """Names of the classes, of all or of none."""
    multilabel: bool = False
    """Whether a text may be of several classes: a probability each, instead of probabilities that sum to 1."""
    target_mean: Annotated[float, Strict(), Interval(ge=-LARGEST, le=LARGEST)] = 0.0
    """Of the numbers to be told: the model's output is standardised."""
    target_std: Annotated[float, Strict(), Interval(gt=0, le=LARGEST)] = 1.0
    """Of the numbers to be told."""
    head_hidden: bool = True
    """A projection and activation before the last projection (BERT's pooler and its transform of hidden words)."""
    head_bias: bool = True
    """Bias of that projection."""
    head_activation: Literal["tanh", "relu", "gelu", "gelu_tanh"] = "tanh"
    """Of that projection."""
    head_norm: bool = False
    """A norm behind that activation."""
    head_dropout: BelowOne = 0.0
    """Before the last projection."""
    tie_weights: bool = True
    """Hidden words are told by the very vectors that they are embedded with."""
    sentence_pool: Literal["cls", "mean", "max"] | None = None
    """How tokens become the vector of a text, in a model trained for that; None: their mean."""
    sentence_norm: bool = True
    """Whether that vector has length 1."""
    sentence_prompt: str = ""
    """Put before each text that becomes a vector."""
    encoder: EncoderConfig = field(default_factory=EncoderConfig)

    def __post_init__(self):
        if self.head == "classes" and self.labels and len(self.labels) != self.classes:
            raise UserError(f"TextConfig: {len(self.labels)} labels for {self.classes} classes: name all or none.")

    @property
    def predicts_number(self) -> bool:
        return self.head == "classes" and self.classes == 1 and not self.multilabel


class Head(nn.Module):
    """[dense -> activation -> norm ->] dropout -> projection. Of features that a model ends with, no projection."""

    ACTIVATIONS = {"tanh": torch.tanh, "relu": F.relu, "gelu": F.gelu, "gelu_tanh": partial(F.gelu, approximate="tanh")}

    def __init__(self, config: TextConfig):
        super().__init__()
        dim = config.encoder.dim
        width = (config.embedding_dim or dim) if config.head == "tokens" else dim
        if width != dim and not config.head_hidden:
            raise UserError("TextConfig: hidden words of another width than the encoder's need head_hidden=True.")
        outputs = {"classes": config.classes, "tokens": config.vocab_size, "none": 0}[config.head]
        self.dense = nn.Linear(dim, width, bias=config.head_bias) if config.head_hidden else None
        self.activation = self.ACTIVATIONS[config.head_activation]
        self.norm = make_norm(config.encoder, width) if config.head_hidden and config.head_norm else nn.Identity()
        self.dropout = nn.Dropout(config.head_dropout)
        self.out = nn.Linear(width, outputs) if outputs else nn.Identity()
        init_weights(self)

    def hidden(self, x: Float[Tensor, "*b d"]) -> Float[Tensor, "*b e"]:
        """What the last projection sees."""
        return x if self.dense is None else self.norm(self.activation(self.dense(x)))

    def forward(self, x: Float[Tensor, "*b d"]) -> Float[Tensor, "*b outputs"]:
        return self.out(self.dropout(self.hidden(x)))


class TextEncoder(nn.Module, HubModel, library_name="trivium", tags=["text-encoder"]):
    """Texts as word numbers "b n" to logits: "b classes", or for hidden words "hidden vocabulary"."""

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
        self.head = Head(config)
        if config.head == "tokens" and config.tie_weights:
            self.head.out.weight = self.embed.words.weight

    def tokens(
        self,
        ids: Int[Tensor, "b n"],
        mask: Bool[Tensor, "b n"] | None = None,
        segments: Int[Tensor, "b n"] | None = None,
    ) -> Tokens:
        return self.embed(ids, mask, segments)

    def encode(
        self,
        ids: Int[Tensor, "b n"],
        mask: Bool[Tensor, "b n"] | None = None,
        segments: Int[Tensor, "b n"] | None = None,
    ) -> Tokens:
        return self.encoder(self.tokens(ids, mask, segments))

    def features(
        self,
        ids: Int[Tensor, "b n"],
        mask: Bool[Tensor, "b n"] | None = None,
        segments: Int[Tensor, "b n"] | None = None,
    ) -> Float[Tensor, "b d"]:
        """One vector per text: what the last projection sees (BERT's pooled output)."""
        pooled = pool(self.encode(ids, mask, segments), self.config.pool)
        return pooled if self.config.head == "tokens" else self.head.hidden(pooled)

    def forward(
        self,
        ids: Int[Tensor, "b n"],
        mask: Bool[Tensor, "b n"] | None = None,
        segments: Int[Tensor, "b n"] | None = None,
        where: Bool[Tensor, "b n"] | None = None,
    ) -> Float[Tensor, "b classes"] | Float[Tensor, "hidden vocabulary"] | Float[Tensor, "b n vocabulary"]:
        """where: the hidden words that logits are wanted for; those of all are given if None."""
        encoded = self.encode(ids, mask, segments)
        if self.config.head == "tokens":
            return self.head(encoded.x if where is None else encoded.x[where])
        return self.head(pool(encoded, self.config.pool))

    def probabilities(self, logits: Float[Tensor, "*b classes"]) -> Float[Tensor, "*b classes"]:
        return logits.sigmoid() if self.config.multilabel else logits.softmax(dim=-1)

    def pooled_texts(self, ids: Int[Tensor, "b n"], mask: Bool[Tensor, "b n"] | None = None) -> Float[Tensor, "b d"]:
        """One vector per text, whatever the head: `features` lie behind a layer of it."""
        return pool(self.encode(ids, mask), self.config.sentence_pool or "mean")

    def sentence_vectors(
        self, ids: Int[Tensor, "b n"], mask: Bool[Tensor, "b n"] | None = None
    ) -> Float[Tensor, "b d"]:
        """One vector per text, to be compared with others'. By default the mean of its tokens, of length 1 (Reimers and
        Gurevych 2019, section 3)."""
        vectors = self.pooled_texts(ids, mask).float()
        return F.normalize(vectors, dim=-1) if self.config.sentence_norm else vectors
