"""Pooling: one vector for each sample from its tokens; padding never counts."""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..attention.module import Attention
from .blocks import MLP, make_norm
from .config import EncoderConfig, per_layer
from .init import init_weights, learned
from .tokens import Tokens

Pool = Literal["cls", "prefix", "mean", "max", "attention"]


def pool(tokens: Tokens, how: Pool) -> Float[Tensor, "b d"]:
    """The first token, the mean of the prefix, or the mean or maximum of the body's real tokens (0 if there are none).

    Pooling by attention has weights: it is the module `AttentionPool`.
    """
    if how == "attention":
        raise ValueError("pool: attention pooling has weights; use AttentionPool.")
    if how == "cls":
        return tokens.x[:, 0]
    if how == "prefix":
        return tokens.x[:, : tokens.prefix].mean(dim=1)
    body, mask = tokens.body, tokens.body_mask
    if mask is None:
        return body.mean(dim=1) if how == "mean" else body.amax(dim=1)
    real = mask[..., None]
    if how == "mean":
        return body.where(real, 0).sum(dim=1) / real.sum(dim=1).clamp(min=1)
    return body.where(real, -torch.inf).amax(dim=1).where(real.any(dim=1), 0)


class AttentionPool(nn.Module):
    """A learned query attends to all tokens; an MLP follows (Zhai et al. 2022, "MAP head")."""

    def __init__(self, config: EncoderConfig):
        super().__init__()
        dim = config.dim
        self.query = learned(1, 1, dim)
        self.attention = Attention(dim, config.heads, context_dim=dim, head_dim=config.head_dim)
        self.norm = make_norm(config, dim)
        hidden = per_layer(config.mlp_dim, 0) or 4 * dim
        self.mlp = MLP(dim, hidden, per_layer(config.activation, 0), config.mlp_bias)
        init_weights(self)

    def forward(self, tokens: Tokens) -> Float[Tensor, "b d"]:
        query = self.query.expand(tokens.x.shape[0], -1, -1)
        x = self.attention(query, tokens.x, tokens.mask)
        return (x + self.mlp(self.norm(x)))[:, 0]
