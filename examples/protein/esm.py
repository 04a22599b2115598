"""ESM-2, a language model of proteins (Lin et al. 2023), on the core's encoder; which residues touch is read from its
attention (Rao et al. 2021)."""

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import field
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from einops import einsum, rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from core import Encoder, EncoderConfig, HubModel, Tokens, from_dict, init_weights, make_norm, record_attention
from core.config import NotNegative, configclass

from .alphabet import ESM2, Alphabet

MASKED = 0.15 * 0.8  # of the residues in training: 15 % were to be told, 80 % of those stood as <mask>
LONGEST = 1022  # residues of a training sequence; longer ones were cut (Lin et al. 2023, supplement)


@configclass
class ESMConfig:
    alphabet: tuple[str, ...] = ESM2
    """Tokens by number."""
    token_dropout: bool = True
    """A <mask> is embedded as 0, and what is left made up for as dropout does."""
    head: Literal["tokens", "none"] = "tokens"
    """What the model tells: hidden residues, or nothing (it gives features)."""
    tie_weights: bool = True
    """Hidden residues are told by the very vectors that they are embedded with."""
    frequencies: tuple[NotNegative, ...] = ()
    """Rotary frequencies of a checkpoint that was trained with others than rotary_theta gives (rounded to half
    precision); empty where they are the same."""
    encoder: EncoderConfig = field(
        default_factory=lambda: EncoderConfig(dim=320, depth=6, heads=20, norm_eps=1e-5, rotary="1d")
    )


class Reading(NamedTuple):
    """What the model makes of a batch, the frames of the sequences left out."""

    embeddings: Float[Tensor, "b n d"]
    """Of each residue; 0 for padding."""
    contacts: Float[Tensor, "b n n"]
    """How probably two residues touch; 0 for padding."""


class Protein(NamedTuple):
    """What it makes of one."""

    embeddings: Float[Tensor, "n d"]
    contacts: Float[Tensor, "n n"]


class ResidueEmbedding(nn.Module):
    def __init__(self, config: ESMConfig):
        super().__init__()
        self.residues = nn.Embedding(len(config.alphabet), config.encoder.dim)
        self.token_dropout, self.hidden = config.token_dropout, Alphabet(config.alphabet).mask
        init_weights(self)

    def forward(self, ids: Int[Tensor, "b n"], mask: Bool[Tensor, "b n"] | None = None) -> Tokens:
        x = self.residues(ids)
        if self.token_dropout:
            hidden = ids == self.hidden
            real = torch.ones_like(hidden) if mask is None else mask
            length, seen = real.sum(dim=1), (real & ~hidden).sum(dim=1)
            scale = (1 - MASKED) * length / seen.clamp(min=1)
            x = x.masked_fill(hidden[..., None], 0) * scale[:, None, None].to(x.dtype)
        return Tokens(x, mask)


class ESMEncoder(Encoder):
    """The core's, at the rotary frequencies of a checkpoint."""

    def __init__(self, config: EncoderConfig, frequencies: tuple[NotNegative, ...] = ()):
        super().__init__(config)
        self.frequencies = frequencies

    def rotary_tables(self, tokens: Tokens) -> list[tuple[Float[Tensor, "n c"], Float[Tensor, "n c"]] | None]:
        if not self.frequencies:
            return super().rotary_tables(tokens)
        place = torch.arange(tokens.x.shape[1], dtype=torch.float32, device=tokens.x.device)
        angles = (place[:, None] * torch.tensor(self.frequencies, device=place.device)).repeat(1, 2)
        return [(angles.cos(), angles.sin())] * self.config.depth


class TokenHead(nn.Module):
    """Which residue stands where."""

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
    corrected for what each residue gets of everybody (APC, the average product correction of Dunn et al. 2008)."""

    def __init__(self, layers: int, heads: int):
        super().__init__()
        self.layers = layers
        self.regression = nn.Linear(layers * heads, 1)
        init_weights(self)

    def forward(
        self, attention: Iterable[Float[Tensor, "b h n n"]], real: Bool[Tensor, "b n"]
    ) -> Float[Tensor, "b n n"]:
        """Log-odds. attention: the layers', one after the other, so that no two need to be in memory."""
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
    """Residues as numbers "b n", each sequence framed by <cls> and <eos> (see Alphabet), to logits "b n tokens"."""

    def __init__(self, config: ESMConfig | Mapping[str, Any]):
        super().__init__()
        self.config = config = from_dict(ESMConfig, config)
        self.embed = ResidueEmbedding(config)
        self.encoder = ESMEncoder(config.encoder, config.frequencies)
        self.contact_head = ContactHead(config.encoder.depth, config.encoder.heads)
        self.head = TokenHead(config.encoder, len(config.alphabet)) if config.head == "tokens" else nn.Identity()
        if config.head == "tokens" and config.tie_weights:
            self.head.out.weight = self.embed.residues.weight

    def tokens(self, ids: Int[Tensor, "b n"], mask: Bool[Tensor, "b n"] | None = None) -> Tokens:
        return self.embed(ids, mask)

    def encode(self, ids: Int[Tensor, "b n"], mask: Bool[Tensor, "b n"] | None = None) -> Tokens:
        return self.encoder(self.tokens(ids, mask))

    def forward(self, ids: Int[Tensor, "b n"], mask: Bool[Tensor, "b n"] | None = None) -> Float[Tensor, "b n tokens"]:
        """Of a model without a head: its features."""
        return self.head(self.encode(ids, mask).x)

    def read(self, ids: Int[Tensor, "b n"], mask: Bool[Tensor, "b n"] | None = None) -> Reading:
        """Embeddings and contacts in one pass. What contacts teach ends at their head: attention is read as it is."""
        with record_attention() as calls:
            encoded = self.encode(ids, mask)
        ends = torch.tensor([self.config.alphabet.index(end) for end in ("<cls>", "<eos>")], device=ids.device)
        real = ~torch.isin(ids, ends) if mask is None else mask & ~torch.isin(ids, ends)
        real = real[:, 1:-1]
        logits = self.contact_head((call.weights[..., 1:-1, 1:-1] for call in calls), real)
        contacts = logits.sigmoid().where(real[:, :, None] & real[:, None], 0)
        return Reading(encoded.x[:, 1:-1].where(real[..., None], 0), contacts)

    @torch.no_grad()
    def read_sequence(self, sequence: str) -> Protein:
        """One protein's embeddings and contacts, on the CPU."""
        if len(sequence) > LONGEST:
            warnings.warn(f"A sequence of {len(sequence):,} residues: ESM-2 saw at most {LONGEST:,}.", stacklevel=2)
        ids, _ = Alphabet(self.config.alphabet).encode([sequence])
        embeddings, contacts = self.read(ids.to(self.embed.residues.weight.device))
        return Protein(embeddings[0].float().cpu(), contacts[0].float().cpu())
