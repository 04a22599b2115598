"""ESM-2 (Lin et al. 2023) and ESM C (ESM Team 2024), language models of proteins, on the core's encoder; ESM-2 predicts
which residues touch from its attention weights (Rao et al. 2021)."""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import field
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from einops import einsum, rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from core import (
    Encoder,
    EncoderConfig,
    HubModel,
    Tokens,
    UserError,
    from_dict,
    init_weights,
    make_norm,
    record_attention,
)
from core.attention.packing import Packing, Place
from core.config import NotNegative, Size, configclass

from .alphabet import ESM2, Alphabet

MASK_RATIO = 0.15 * 0.8  # in training: 15 % of the residues were targets, 80 % of those were replaced by <mask>
Sequences = Sequence[Int[Tensor, "_"]]


@configclass
class ESMConfig:
    alphabet: tuple[str, ...] = ESM2
    """The tokens; a token's id is its index."""
    token_dropout: bool = True
    """A <mask> is embedded as 0, and the other embeddings are scaled up, as in dropout."""
    head: Literal["tokens", "none"] = "tokens"
    """What the model predicts: masked residues, or nothing (it returns features)."""
    tie_weights: bool = True
    """The head shares its weight with the token embedding."""
    frequencies: tuple[NotNegative, ...] = ()
    """Rotary frequencies of a checkpoint that was trained with others than rotary_theta gives (rounded to half
    precision); empty where they are the same."""
    contact_head: bool = True
    """Whether it predicts contacts; ESM C does not."""
    longest: Size = 1022
    """Residues of the longest sequences in training; longer ones were cut (Lin et al. 2023, supplement)."""
    encoder: EncoderConfig = field(
        default_factory=lambda: EncoderConfig(dim=320, depth=6, heads=20, norm_eps=1e-5, rotary="1d")
    )


class Reading(NamedTuple):
    """The outputs for a batch, without <cls> and <eos>."""

    embeddings: Float[Tensor, "b n d"]
    """The embedding of each residue; 0 for padding."""
    contacts: Float[Tensor, "b n n"] | None
    """The probability that two residues touch, 0 for padding; None of a model without a contact head."""


class Protein(NamedTuple):
    """The outputs for one protein."""

    embeddings: Float[Tensor, "n d"]
    contacts: Float[Tensor, "n n"] | None


class ResidueEmbedding(nn.Module):
    def __init__(self, config: ESMConfig):
        super().__init__()
        self.residues = nn.Embedding(len(config.alphabet), config.encoder.dim)
        self.token_dropout, self.mask_id = config.token_dropout, Alphabet(config.alphabet).mask
        init_weights(self)

    def forward(self, ids: Int[Tensor, "b n"] | Sequences, mask: Bool[Tensor, "b n"] | Packing | None = None) -> Tokens:
        """ids: a padded batch with its mask, one row of several sequences with its packing, or a list of sequences."""
        if not isinstance(ids, Tensor):
            if not ids or mask is not None:
                raise UserError("ESM: a list of sequences needs at least one of them, and no padding mask.")
            ids, mask = torch.cat(list(ids))[None], Packing.of(Place(len(each)) for each in ids)
        packing, mask = (mask, None) if isinstance(mask, Packing) else (None, mask)
        tokens = Tokens(self.residues(ids), mask, packing=packing)
        if not self.token_dropout:
            return tokens
        masked = ids == self.mask_id
        if packing is None:
            real = torch.ones_like(masked) if mask is None else mask
            length, visible = real.sum(dim=1), (real & ~masked).sum(dim=1)
        else:
            length = packing.lengths.to(ids.device)
            visible = torch.zeros_like(length).index_add(0, tokens.places.sequence, (~masked[0]).long())
        scale = ((1 - MASK_RATIO) * length / visible.clamp(min=1)).to(tokens.x.dtype)
        x = tokens.x.masked_fill(masked[..., None], 0)
        return tokens.with_x(x * tokens.of_each_sequence(scale[:, None]))


class ESMEncoder(Encoder):
    """The core's encoder with the rotary frequencies of a checkpoint."""

    def __init__(self, config: EncoderConfig, frequencies: tuple[NotNegative, ...] = ()):
        super().__init__(config)
        self.frequencies = frequencies

    def rotary_tables(self, tokens: Tokens) -> list[tuple[Float[Tensor, "n c"], Float[Tensor, "n c"]] | None]:
        if not self.frequencies:
            return super().rotary_tables(tokens)
        place = torch.arange(tokens.x.shape[1], device=tokens.x.device)
        place = (place if tokens.packing is None else tokens.places.position).float()
        angles = (place[:, None] * torch.tensor(self.frequencies, device=place.device)).repeat(1, 2)
        return [(angles.cos(), angles.sin())] * self.config.depth


class TokenHead(nn.Module):
    """Predicts the residue at each place."""

    def __init__(self, config: EncoderConfig, tokens: int):
        super().__init__()
        self.dense = nn.Linear(config.dim, config.dim)
        self.norm = make_norm(config, config.dim)
        self.out = nn.Linear(config.dim, tokens)
        init_weights(self)

    def forward(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n tokens"]:
        return self.out(self.norm(F.gelu(self.dense(x))))


class ContactHead(nn.Module):
    """Logistic regression over the attention of all layers and heads (Rao et al. 2021): symmetrised, then
    corrected for the mean attention of each residue (APC, the average product correction of Dunn et al. 2008)."""

    def __init__(self, layers: int, heads: int):
        super().__init__()
        self.layers = layers
        self.regression = nn.Linear(layers * heads, 1)
        init_weights(self)

    def forward(
        self, attention: Iterable[Float[Tensor, "b h n n"]], real: Bool[Tensor, "b n"]
    ) -> Float[Tensor, "b n n"]:
        """Logits. attention: the attention weights, layer by layer, so that only one layer's are in memory."""
        pairs = (real[:, :, None] & real[:, None])[:, None]
        logits = self.regression.bias
        gains = rearrange(self.regression.weight, "1 (layers h) -> layers h", layers=self.layers)
        for gain, weights in zip(gains, attention, strict=True):
            weights = weights.where(pairs, 0)
            weights = weights + weights.mT
            each = weights.sum(dim=-1, keepdim=True)
            everything = each.sum(dim=-2, keepdim=True).clamp(min=torch.finfo(each.dtype).tiny)
            corrected = weights - each * each.mT / everything
            logits = logits + einsum(gain, corrected.to(gain.dtype), "h, b h i j -> b i j")
        return logits


class ESM(nn.Module, HubModel, library_name="trivium", tags=["protein"]):
    """Token ids "b n" of sequences between <cls> and <eos> (see Alphabet) to logits "b n tokens".

    A batch may instead be a list of sequences "n" of any lengths, or one row of them, ids "1 n" with a `Packing` in
    place of the padding mask: then the logits are "1 n tokens".
    """

    def __init__(self, config: ESMConfig | Mapping[str, Any]):
        super().__init__()
        self.config = config = from_dict(ESMConfig, config)
        self.embed = ResidueEmbedding(config)
        self.encoder = ESMEncoder(config.encoder, config.frequencies)
        shape = config.encoder.depth, config.encoder.heads
        self.contact_head = ContactHead(*shape) if config.contact_head else None
        self.head = TokenHead(config.encoder, len(config.alphabet)) if config.head == "tokens" else nn.Identity()
        if config.head == "tokens" and config.tie_weights:
            self.head.out.weight = self.embed.residues.weight

    def tokens(self, ids: Int[Tensor, "b n"] | Sequences, mask: Bool[Tensor, "b n"] | Packing | None = None) -> Tokens:
        return self.embed(ids, mask)

    def encode(self, ids: Int[Tensor, "b n"] | Sequences, mask: Bool[Tensor, "b n"] | Packing | None = None) -> Tokens:
        return self.encoder(self.tokens(ids, mask))

    def forward(
        self, ids: Int[Tensor, "b n"] | Sequences, mask: Bool[Tensor, "b n"] | Packing | None = None
    ) -> Float[Tensor, "rows m tokens"]:
        """The logits; for a model without a head, the features."""
        return self.head(self.encode(ids, mask).x)

    def read(self, ids: Int[Tensor, "b n"], mask: Bool[Tensor, "b n"] | None = None) -> Reading:
        """Embeddings and contacts in one pass. Gradients of the contacts reach the contact head only."""
        with record_attention() if self.contact_head else nullcontext(()) as calls:
            encoded = self.encode(ids, mask)
        ends = torch.tensor([self.config.alphabet.index(end) for end in ("<cls>", "<eos>")], device=ids.device)
        real = ~torch.isin(ids, ends) if mask is None else mask & ~torch.isin(ids, ends)
        real = real[:, 1:-1]
        embeddings = encoded.x[:, 1:-1].where(real[..., None], 0)
        if self.contact_head is None:
            return Reading(embeddings, None)
        logits = self.contact_head((call.weights[..., 1:-1, 1:-1] for call in calls), real)
        contacts = logits.sigmoid().where(real[:, :, None] & real[:, None], 0)
        return Reading(embeddings, contacts)

    @torch.no_grad()
    def read_sequence(self, sequence: str) -> Protein:
        """The embeddings and contacts of one protein, on the CPU."""
        if len(sequence) > (longest := self.config.longest):
            warnings.warn(f"A sequence of {len(sequence):,} residues: the model saw at most {longest:,}.", stacklevel=2)
        ids, _ = Alphabet(self.config.alphabet).encode([sequence])
        embeddings, contacts = self.read(ids.to(self.embed.residues.weight.device))
        return Protein(embeddings[0].float().cpu(), None if contacts is None else contacts[0].float().cpu())
