"""Attentions and encoders that look odd and are right: the kit must find no fault in them."""

import math

import torch
import torch.nn.functional as F
from module_mutants import Layer, Stack
from torch.utils.checkpoint import checkpoint


def logits_of(q, k):
    return q @ k.mT * q.shape[-1] ** -0.5


def prescaled_queries(q, k, v):
    return (q * q.shape[-1] ** -0.5 @ k.mT).softmax(-1) @ v


def scaled_on_both_sides(q, k, v):
    half = q.shape[-1] ** -0.25
    return ((q * half) @ (k * half).mT).softmax(-1) @ v


def normalised_last(q, k, v):
    logits = logits_of(q, k)
    if k.shape[2] == 0:
        return torch.zeros_like(q)
    weights = (logits - logits.amax(-1, keepdim=True)).exp()
    return weights @ v / weights.sum(-1, keepdim=True)


def by_powers_of_two(q, k, v):
    if k.shape[2] == 0:
        return torch.zeros_like(q)
    logits = logits_of(q, k) / math.log(2)
    weights = torch.exp2(logits - logits.amax(-1, keepdim=True).detach())
    return weights / weights.sum(-1, keepdim=True) @ v


def by_logsumexp(q, k, v):
    logits = logits_of(q, k).to(torch.promote_types(q.dtype, torch.float32))
    return (logits - logits.logsumexp(-1, keepdim=True)).exp().to(v.dtype) @ v if k.shape[2] else torch.zeros_like(q)


def softmax_in_fp32(q, k, v):
    return logits_of(q, k).to(torch.promote_types(q.dtype, torch.float32)).softmax(-1).to(v.dtype) @ v


def all_in_fp32(q, k, v):
    dtype = torch.promote_types(q.dtype, torch.float32)
    return (logits_of(q.to(dtype), k.to(dtype)).softmax(-1) @ v.to(dtype)).to(v.dtype)


def softmax_over_another_axis(q, k, v):
    return (logits_of(q, k).mT.softmax(-2)).mT @ v


def by_einsum(q, k, v):
    logits = torch.einsum("bhic,bhjc->bhij", q, k) / math.sqrt(q.shape[-1])
    return torch.einsum("bhij,bhjc->bhic", logits.softmax(-1), v)


def heads_in_the_batch(q, k, v):
    if 0 in q.shape:
        return torch.zeros_like(q)
    out = F.scaled_dot_product_attention(*(t.flatten(0, 1)[:, None] for t in (q, k, v)))
    return out[:, 0].unflatten(0, q.shape[:2])


def head_by_head(q, k, v):
    return torch.stack(
        [F.scaled_dot_product_attention(*each) for each in zip(*(t.unbind(1) for t in (q, k, v)), strict=True)], 1
    )


def queries_in_chunks(q, k, v):
    return torch.cat([F.scaled_dot_product_attention(part, k, v) for part in q.split(5, dim=2)], dim=2)


def keys_in_chunks(q, k, v):
    """A running maximum and sum (Milakov and Gimelshein 2018, algorithm 3)."""
    dtype = torch.promote_types(q.dtype, torch.float32)
    highest = q.new_full((*q.shape[:3], 1), -1e30, dtype=dtype)
    total, out = torch.zeros_like(highest), torch.zeros_like(q, dtype=dtype)
    for some_k, some_v in zip(k.split(5, dim=2), v.split(5, dim=2), strict=True):
        if some_k.shape[2] == 0:
            continue
        logits = logits_of(q.to(dtype), some_k.to(dtype))
        higher = torch.maximum(highest, logits.amax(-1, keepdim=True))
        weights, kept = (logits - higher).exp(), (highest - higher).exp()
        total, out = total * kept + weights.sum(-1, keepdim=True), out * kept + weights @ some_v.to(dtype)
        highest = higher
    return (out / total.clamp(min=1e-30)).to(v.dtype)


def recomputed(q, k, v):
    return checkpoint(F.scaled_dot_product_attention, q, k, v, use_reentrant=False)


def keys_back_to_front(q, k, v):
    return F.scaled_dot_product_attention(q, k.flip(2), v.flip(2))


def a_key_that_nobody_sees(q, k, v):
    """As where a cache is longer than what is in it."""
    k, v = (F.pad(t, (0, 0, 0, 1)) for t in (k, v))
    seen = torch.arange(k.shape[2]) < k.shape[2] - 1
    return F.scaled_dot_product_attention(q, k, v, attn_mask=seen.expand(q.shape[2], -1))


ATTENTIONS = [
    prescaled_queries,
    scaled_on_both_sides,
    normalised_last,
    by_powers_of_two,
    by_logsumexp,
    softmax_in_fp32,
    all_in_fp32,
    softmax_over_another_axis,
    by_einsum,
    heads_in_the_batch,
    head_by_head,
    queries_in_chunks,
    keys_in_chunks,
    recomputed,
    keys_back_to_front,
    a_key_that_nobody_sees,
]


class FusedLast(Layer):
    """Heads and features the other way round in the fused projection."""

    def attention(self, x, mask):
        q, k, v = (t.transpose(1, 2) for t in self.qkv(x).unflatten(-1, (self.heads, -1, 3)).unbind(-1))
        return self.out(self.attend(q, k, v, mask).transpose(1, 2).flatten(2))


class MlpInChunks(Layer):
    def mlp(self, x):
        return torch.cat([super(MlpInChunks, self).mlp(part) for part in x.split(5, dim=1)], dim=1)


class ProjectedByHead(Layer):
    """The output is a sum over heads."""

    def attention(self, x, mask):
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        out, weight = self.attend(q, k, v, mask), self.out.weight.unflatten(1, (self.heads, -1))
        return torch.einsum("bhnc,dhc->bnd", out, weight) + self.out.bias


class CheckpointedLayers(Stack):
    def forward(self, x, mask=None):
        x = self.before(x, mask)
        for layer in self.layers:
            x = checkpoint(layer, x, mask, use_reentrant=False)
        return self.after(x, mask)


class WithoutPadding(Stack):
    """Samples one at a time, real tokens alone, and padding put back."""

    def forward(self, x, mask=None):
        if mask is None or not len(x):
            return super().forward(x, None)
        rows = [
            super(WithoutPadding, self).forward(row[real][None], None)[0] for row, real in zip(x, mask, strict=True)
        ]
        return x.new_zeros(x.shape).index_put(mask.nonzero(as_tuple=True), torch.cat(rows))


ENCODERS = [
    lambda: Stack(FusedLast),
    lambda: Stack(MlpInChunks),
    lambda: Stack(ProjectedByHead),
    CheckpointedLayers,
    WithoutPadding,
]
