"""Pooling: one vector for each sample from its tokens; padding never counts."""

from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..attention.module import Attention
from ..attention.packing import Packing
from ..attention.relation import Relation
from ..errors import UserError
from .blocks import MLP, make_norm
from .config import EncoderConfig, per_layer
from .init import init_weights, learned
from .tokens import Tokens

Pool = Literal["cls", "prefix", "mean", "max", "last", "attention", "cls_mean", "each_prefix"]


def pooled_width(how: Pool, dim: int, prefix: int) -> int:
    """The width of what `pool` makes of tokens of width `dim`, `prefix` of which are prefix tokens."""
    return dim * {"cls_mean": 2, "each_prefix": prefix}.get(how, 1)


def pool(tokens: Tokens, how: Pool) -> Float[Tensor, "b p"]:
    """The first real token, the mean of the prefix, or the mean, maximum or last of the body's real tokens (0 without
    any).

    cls_mean: that token and the mean, side by side (DINOv2's classifier). each_prefix: all tokens of the prefix,
    side by side (the two classifiers of a distilled DeiT). Pooling by attention has weights: it is the module
    `AttentionPool`.
    """
    if how == "attention":
        raise UserError("pool: attention pooling has weights; use AttentionPool.")
    if how not in get_args(Pool):
        known = ", ".join(word for word in get_args(Pool) if word != "attention")
        raise UserError(f"pool: {how!r} is not a way to pool; they are {known}.")
    if how in ("prefix", "each_prefix") and not _has_prefix(tokens):
        raise UserError(f"pool: {how!r} is of prefix tokens, which not all of these sequences have.")
    if how == "cls_mean":
        return torch.cat([pool(tokens, "cls"), pool(tokens, "mean")], dim=-1)
    if tokens.packing is not None:
        return _pool_row(tokens, tokens.packing, how)
    if how == "cls":
        if tokens.mask is None or tokens.prefix:
            return tokens.x[:, 0]
        first = tokens.mask.int().argmax(dim=1)  # behind padding on the left
        return tokens.x.gather(1, first[:, None, None].expand(-1, 1, tokens.x.shape[2]))[:, 0]
    if how == "prefix":
        return tokens.x[:, : tokens.prefix].mean(dim=1)
    if how == "each_prefix":
        return tokens.x[:, : tokens.prefix].flatten(1)
    body, mask = tokens.body, tokens.body_mask
    if body.shape[1] == 0:
        return body.sum(dim=1)
    if mask is None:
        return body[:, -1] if how == "last" else body.mean(dim=1) if how == "mean" else body.amax(dim=1)
    real = mask[..., None]
    if how == "last":
        at = torch.arange(1, body.shape[1] + 1, device=body.device) * mask
        return body.where(real, 0).gather(1, at.argmax(dim=1)[:, None, None].expand(-1, 1, body.shape[2]))[:, 0]
    if how == "mean":
        return body.where(real, 0).sum(dim=1) / real.sum(dim=1).clamp(min=1)
    return body.where(real, -torch.inf).amax(dim=1).where(real.any(dim=1), 0)


def _has_prefix(tokens: Tokens) -> bool:
    """Whether all sequences have prefix tokens; a graph cannot read that of a packed row, and takes it for granted."""
    if tokens.packing is None:
        return tokens.prefix > 0
    return torch.compiler.is_compiling() or bool((tokens.packing.prefixes > 0).all())


def _pool_row(tokens: Tokens, packing: Packing, how: Pool) -> Float[Tensor, "s p"]:
    """`pool` of several sequences in a row."""
    x, at, count = tokens.x[0], tokens.places, len(packing.places)
    if how == "cls":
        if not torch.compiler.is_compiling() and not packing.lengths.all():
            raise UserError("pool: a sequence of the row has no tokens, and so no first one.")
        return x[packing.starts.to(x.device, non_blocking=True)]
    if how == "last":
        last = (packing.starts + packing.lengths - 1).clamp(min=0).to(x.device, non_blocking=True)
        there = (packing.lengths > packing.prefixes).to(x.device, non_blocking=True)
        return x[last].where(there[:, None], 0)
    if how == "each_prefix":  # every sequence of a row has as many
        return x[~at.in_body].reshape(count, -1)
    wanted = at.in_body if how != "prefix" else ~at.in_body
    if how == "max":
        index = at.sequence[:, None].expand_as(x)
        lowest = x.new_full((count, x.shape[1]), -torch.inf)
        highest = lowest.scatter_reduce(0, index, x.where(wanted[:, None], -torch.inf), "amax")
        return highest.where(highest > -torch.inf, 0)
    sums = x.new_zeros(count, x.shape[1]).index_add(0, at.sequence, x.where(wanted[:, None], 0))
    sizes = packing.prefixes if how == "prefix" else packing.lengths - packing.prefixes
    return sums / sizes.to(x.device, non_blocking=True)[:, None].clamp(min=1)


class AttentionPool(nn.Module):
    """A learned query attends to all tokens; an MLP follows (Zhai et al. 2022, "MAP head").

    prefix: whether it attends to class and register tokens, too.
    heads, hidden: attention heads, and the hidden width of the MLP; those of the encoder if None.
    """

    def __init__(self, config: EncoderConfig, prefix: bool = True, heads: int | None = None, hidden: int | None = None):
        super().__init__()
        dim = config.dim
        self.prefix = prefix
        self.query = learned(1, 1, dim)
        self.attention = Attention(
            dim, heads or config.heads, context_dim=dim, head_dim=None if heads else config.head_dim
        )
        self.norm = make_norm(config, dim)
        hidden = hidden or per_layer(config.mlp_dim, 0) or 4 * dim
        self.mlp = MLP(dim, hidden, per_layer(config.activation, 0), config.mlp_bias)
        init_weights(self)

    def forward(self, tokens: Tokens) -> Float[Tensor, "b d"]:
        count = tokens.count
        tokens = tokens if self.prefix else tokens.without_prefix()
        if tokens.packing is None:
            query, relation = self.query.expand(count, -1, -1), Relation(tokens.mask)
        else:
            places = torch.tensor([[1, 0, 0, 0]]).expand(count, -1)
            query = self.query.expand(-1, count, -1)
            relation = Relation(packing=Packing(places), key_packing=tokens.packing)
        x = self.attention(query, tokens.x, relation=relation)
        x = x + self.mlp(self.norm(x))
        return x[:, 0] if tokens.packing is None else x[0]
