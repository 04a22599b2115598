"""`FoldModel`: from residues to contacts.

As in AlphaFold (Jumper et al. 2021, section 1.6 and 1.8 of its supplement) tokens make pairs, pairs bias the attention
between tokens, and the whole goes round several times with the same weights (recycling).
"""

from collections.abc import Mapping
from dataclasses import field
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from core import Encoder, EncoderConfig, HubModel, Tokens, from_dict, init_weights
from core.config import Layers, Natural, Size, configclass


@configclass
class FoldConfig:
    residues: Size = 2
    """Kinds of residue."""
    pair_dim: Size = 64
    """Width of a pair."""
    reach: Natural = 32
    """Residues farther apart along the chain are all the same distance."""
    rounds: Layers = 3
    """Passes through the encoder; each after the first attends by the pairs of the one before."""
    encoder: EncoderConfig = field(default_factory=lambda: EncoderConfig(dim=128, depth=4, heads=4, rotary="1d"))


class Pairs(nn.Module):
    """Every two tokens, with how far apart they stand along the chain."""

    def __init__(self, dim: int, pair_dim: int, reach: int):
        super().__init__()
        self.reach = reach
        self.ends = nn.Linear(dim, 2 * pair_dim)
        self.separation = nn.Embedding(2 * reach + 1, pair_dim)
        self.norm = nn.LayerNorm(pair_dim)
        self.out = nn.Linear(pair_dim, pair_dim)
        init_weights(self)

    def forward(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n n c"]:
        first, second = self.ends(x).chunk(2, dim=-1)
        place = torch.arange(x.shape[1], device=x.device)
        apart = (place - place[:, None]).clamp(-self.reach, self.reach) + self.reach
        return self.out(F.gelu(self.norm(first[:, :, None] * second[:, None] + self.separation(apart))))


class FoldModel(nn.Module, HubModel, library_name="trivium", tags=["protein"]):
    """Residues as numbers "b n" to the log-odds "b n n" that two of them touch."""

    def __init__(self, config: FoldConfig | Mapping[str, Any]):
        super().__init__()
        self.config = config = from_dict(FoldConfig, config)
        self.embed = nn.Embedding(config.residues, config.encoder.dim)
        self.encoder = Encoder(config.encoder)
        self.pairs = Pairs(config.encoder.dim, config.pair_dim, config.reach)
        self.bias = nn.Linear(config.pair_dim, config.encoder.heads, bias=False)
        self.head = nn.Linear(config.pair_dim, 1)
        for part in (self.embed, self.bias, self.head):
            init_weights(part)

    def tokens(self, residues: Int[Tensor, "b n"], mask: Bool[Tensor, "b n"] | None = None) -> Tokens:
        return Tokens(self.embed(residues), mask)

    def encode(self, residues: Int[Tensor, "b n"], mask: Bool[Tensor, "b n"] | None = None) -> Tokens:
        tokens = self.tokens(residues, mask)
        encoded = self.encoder(tokens)
        for _ in range(self.config.rounds - 1):
            bias = self.bias(self.pairs(encoded.x)).permute(0, 3, 1, 2)
            encoded = self.encoder(tokens.with_x(tokens.x + encoded.x), bias=bias)
        return encoded

    def forward(self, residues: Int[Tensor, "b n"], mask: Bool[Tensor, "b n"] | None = None) -> Float[Tensor, "b n n"]:
        logits = self.head(self.pairs(self.encode(residues, mask).x))[..., 0]
        return (logits + logits.mT) / 2
