"""Attentions, encoders and models with one thing wrong each, for the kit to find."""

import copy
from functools import partial

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from core import attend

# --- Attention --------------------------------------------------------------------------------------------------------


def right(q, k, v, *, mask=None, bias=None, dropout=0.0, scale=None, pattern=None):
    return attend(q, k, v, mask=mask, bias=bias, dropout=dropout, scale=scale, pattern=pattern)


def right_causal(q, k, v):
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


def plain(q, k, v, *, mask=None):
    """Softmax written out."""
    logits = q @ k.mT * q.shape[-1] ** -0.5
    if mask is not None:
        logits = logits.masked_fill(~(mask[:, None, None] if mask.ndim == 2 else mask), -torch.inf)
    return logits.softmax(-1) @ v


def wrong_scale(q, k, v, **how):
    return attend(q / 2**0.5, k, v, **how)


def softmax_over_queries(q, k, v, **how):
    return (q @ k.mT * q.shape[-1] ** -0.5).softmax(-2) @ v


def missing_head(q, k, v, **how):
    out = attend(q, k, v, **how)
    return torch.cat([out[:, :-1], torch.zeros_like(out[:, -1:])], dim=1)


def inverted_mask(q, k, v, *, mask=None, **how):
    return attend(q, k, v, mask=None if mask is None else ~mask, **how)


def one_mask_for_all_heads(q, k, v, *, mask=None, **how):
    return attend(q, k, v, mask=mask[:, :1] if mask is not None and mask.ndim == 4 else mask, **how)


def ignored_bias(q, k, v, *, bias=None, **how):
    return attend(q, k, v, **how)


def ignored_scale(q, k, v, *, scale=None, **how):
    return attend(q, k, v, **how)


def pattern_loses_last_key(q, k, v, *, pattern=None, **how):
    mask = torch.ones(1, 1, 1, k.shape[2], dtype=torch.bool)
    mask[..., -1] = pattern is None
    given = how.pop("mask", None)
    return attend(q, k, v, mask=mask if given is None else mask & given[:, None, None], **how)


def writes_into_queries(q, k, v, **how):
    return attend(q.detach().mul_(1.5), k, v, **how)


def always_fp32(q, k, v, **how):
    return attend(q.float(), k.float(), v.float(), **how)


def nan_on_empty_row(q, k, v, *, mask=None, **how):
    return plain(q, k, v, mask=mask)


def nan_leaks(q, k, v, *, mask=None, **how):
    """torch's own: 0 * NaN in the values."""
    pairs = None if mask is None else mask[:, None, None] if mask.ndim == 2 else mask
    return F.scaled_dot_product_attention(q, k, v, attn_mask=pairs)


def padding_in_the_sum(q, k, v, *, mask=None, **how):
    """Masked keys get a logit of 0 instead of minus infinity."""
    logits = q @ k.mT * q.shape[-1] ** -0.5
    if mask is not None:
        seen = mask[:, None, None] if mask.ndim == 2 else mask
        logits, v = logits * seen, v * mask[:, None, :, None] if mask.ndim == 2 else v
    return logits.softmax(-1) @ v


def batch_leak(q, k, v, **how):
    out = attend(q, k, v, **how)
    return out + 1e-4 * out.mean(0, keepdim=True)


def head_leak(q, k, v, **how):
    return attend(q, k + 1e-3 * k.mean(1, keepdim=True), v, **how)


def position_dependence(q, k, v, **how):
    return attend(q, k + 0.01 * torch.arange(k.shape[2])[:, None].to(k), v, **how)


def leak_of_one(q, k, v):
    return attend(q, k, v, mask=torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).tril(1)[None, None])


def leak_at_one_position(q, k, v):
    mask = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).tril()
    if len(mask) > 8:
        mask[6, 7] = True
    return attend(q, k, v, mask=mask[None, None])


def window(radius):
    return lambda n: (torch.arange(n) - torch.arange(n)[:, None]).abs() <= radius


def windowed(q, k, v, *, radius=3):
    return attend(q, k, v, mask=window(radius)(q.shape[2])[None, None])


def softmax_in_half(q, k, v, *, mask=None, **how):
    """Every step rounded, and sums of many terms too."""
    logits = (q @ k.mT * q.shape[-1] ** -0.5).exp()
    if mask is not None:
        logits = logits * (mask[:, None, None] if mask.ndim == 2 else mask)
    total = torch.zeros_like(logits[..., 0])
    for part in logits.unbind(-1):
        total = total + part
    return (logits / total[..., None]) @ v


def no_maximum_taken_off(q, k, v, **how):
    weights = (q @ k.mT * q.shape[-1] ** -0.5).exp()
    return weights / weights.sum(-1, keepdim=True) @ v


def squeezed(q, k, v, **how):
    return attend(q, k, v, **how).squeeze(2)


def highest_of_none(q, k, v, **how):
    return attend(q, k, v, **how) + 0 * k.amax(dim=2, keepdim=True)


def contiguous_only(q, k, v, **how):
    b, h, n, c = q.shape
    return attend(q.view(b * h, n, c).view(b, h, n, c), k, v, **how)


def noisy(q, k, v, **how):
    return attend(q, k, v, **how) + 1e-12 * torch.randn(())


def dropout_without_rescaling(q, k, v, *, dropout=0.0, **how):
    return attend(q, k, v, dropout=dropout, **how) * (1 - dropout)


def same_dropout_for_all(q, k, v, *, dropout=0.0, **how):
    out = attend(q, k, v, **how)
    return out if not dropout else out * (torch.rand(out.shape[1:]) > dropout) / (1 - dropout)


def dropout_at_zero(q, k, v, *, dropout=0.0, **how):
    return attend(q, k, v, dropout=max(dropout, 0.1), **how)


def detached_keys(q, k, v, **how):
    return attend(q, k.detach(), v, **how)


def gradient_off_by_a_percent(q, k, v, **how):
    return attend(q, 1.01 * k - 0.01 * k.detach(), v, **how)


def other_when_compiled(q, k, v, *, mask=None):
    return plain(q, k, v) if torch.compiler.is_compiling() else plain(q, k, v, mask=mask)


def depends_on_numbers(q, k, v):
    return plain(q, k, v) if float(q.sum()) > -1e9 else q


# --- Encoders ---------------------------------------------------------------------------------------------------------


class Layer(nn.Module):
    """A pre-norm block; a subclass breaks one of its methods."""

    def __init__(self, dim=16, heads=2, dropout=0.0):
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(2))
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.up, self.down = nn.Linear(dim, 2 * dim), nn.Linear(2 * dim, dim)

    def norm(self, x, which):
        return self.norms[which](x)

    def drop(self, x):
        return F.dropout(x, self.dropout, self.training)

    def attend(self, q, k, v, mask):
        return attend(q, k, v, mask=mask)

    def attention(self, x, mask):
        q, k, v = rearrange(self.qkv(x), "b n (three h c) -> three b h n c", three=3, h=self.heads)
        return self.out(rearrange(self.attend(q, k, v, mask), "b h n c -> b n (h c)"))

    def mlp(self, x):
        return self.down(F.gelu(self.up(x)))

    def forward(self, x, mask=None):
        x = x + self.drop(self.attention(self.norm(x, 0), mask))
        return x + self.drop(self.mlp(self.norm(x, 1)))


class Stack(nn.Module):
    """Two layers; padding comes out as 0."""

    def __init__(self, layer=Layer, **how):
        super().__init__()
        self.layers = nn.ModuleList(layer(**how) for _ in range(2))

    def before(self, x, mask):
        return x if mask is None else x.where(mask[..., None], 0)

    def after(self, x, mask):
        return x if mask is None else x.where(mask[..., None], 0)

    def forward(self, x, mask=None):
        x = self.before(x, mask)
        for layer in self.layers:
            x = layer(x, mask)
        return self.after(x, mask)


class Shared(Stack):
    def __init__(self):
        super().__init__()
        self.layers[1] = self.layers[0]


class SharedIsCopied(Stack):
    def __init__(self):
        super().__init__()
        self.layers[1] = copy.deepcopy(self.layers[0])


class NormAcrossTokens(Layer):
    def norm(self, x, which):
        return self.norms[which](x - x.mean(1, keepdim=True))


class CentredOnBatch(Layer):
    def norm(self, x, which):
        return self.norms[which](x - 0.1 * x.mean(0, keepdim=True))


class DropsInEvaluation(Layer):
    def drop(self, x):
        return F.dropout(x, 0.1)


class NeverDrops(Layer):
    def drop(self, x):
        return x


class DetachedWeight(Layer):
    def mlp(self, x):
        return F.linear(F.gelu(self.up(x)), self.down.weight, self.down.bias.detach())


class HalfAGradient(Layer):
    def mlp(self, x):
        out = super().mlp(x)
        return (out + out.detach()) / 2


class IgnoresMask(Layer):
    def attend(self, q, k, v, mask):
        return attend(q, k, v)


class NaNOnEmptyRow(Layer):
    def attend(self, q, k, v, mask):
        return plain(q, k, v, mask=mask)


class CausalLayer(Layer):
    diagonal = 0

    def attend(self, q, k, v, mask):
        near = torch.ones(q.shape[2], q.shape[2], dtype=torch.bool).tril(self.diagonal)[None, None]
        return attend(q, k, v, mask=near if mask is None else near & mask[:, None, None])


class CausalLeak(CausalLayer):
    diagonal = 1


class KnowsItsPlace(Layer):
    def attention(self, x, mask):
        return super().attention(x + 0.01 * torch.arange(x.shape[1])[:, None].to(x), mask)


class CoarseInHalf(Layer):
    """Keeps three digits of what is added up, under autocast."""

    def mlp(self, x):
        out = super().mlp(x)
        return (out * 16).round() / 16 if torch.is_autocast_enabled("cpu") else out


class Exponential(Layer):
    def norm(self, x, which):
        return x.exp().log1p()


class ContiguousOnly(Stack):
    def before(self, x, mask):
        return super().before(x.view(-1).view(x.shape), mask)


class SqueezesOne(Stack):
    def after(self, x, mask):
        return super().after(x, mask).squeeze(1)


class DividesByLength(Stack):
    def after(self, x, mask):
        return super().after(x, mask) * (x.shape[1] / x.shape[1])


class NeedsASample(Stack):
    def after(self, x, mask):
        return super().after(x, mask) + 0 * x.amax(dim=0)


class PaddingIsKept(Stack):
    def after(self, x, mask):
        return x


class NaNReachesGradients(Stack):
    """Padding is set to 0 behind the layers alone."""

    def before(self, x, mask):
        return x


class TableOutsideState(Stack):
    def __init__(self):
        super().__init__()
        self.register_buffer("gain", torch.rand(16), persistent=False)

    def before(self, x, mask):
        return super().before(x * (1 + self.gain.to(x)), mask)


class CountsItsCalls(Stack):
    calls = 0

    def after(self, x, mask):
        self.calls += 1
        return super().after(x, mask) * (1 + 1e-6 * self.calls)


class NoisyInTraining(Stack):
    def after(self, x, mask):
        return super().after(x, mask) + 1e-9 * float(torch.Generator().seed() % 97) * self.training


class RecomputedWithoutResidual(Stack):
    def forward(self, x, mask=None):
        x = self.before(x, mask)
        for layer in self.layers:
            x = torch.utils.checkpoint.checkpoint(lambda x, layer=layer: layer(x, mask) - x, x, use_reentrant=False)
        return self.after(x, mask)


class WrittenOver(Stack):
    def before(self, x, mask):
        return super().before(x.mul_(1.1), mask)


class LowRank(nn.Module):
    """A small adapter on a linear layer."""

    def __init__(self, host, up):
        super().__init__()
        self.host, self.down, self.up = host, nn.Linear(16, 2, bias=False), nn.Linear(2, 32, bias=False)
        nn.init.constant_(self.up.weight, up)
        self.down.to(host.weight), self.up.to(host.weight)

    def forward(self, x):
        return self.host(x) + self.up(self.down(x))


def adapt(module, up=0.0):
    module.requires_grad_(False)
    for layer in module.layers:
        layer.up = LowRank(layer.up, up)
    return module


def adapt_without_gradient(module):
    adapt(module)
    for layer in module.layers:
        layer.up.down.requires_grad_(False)
        layer.up.up.weight.register_hook(torch.zeros_like)
    return module


# --- Models -----------------------------------------------------------------------------------------------------------


class Words(nn.Module):
    """Word numbers to logits of four classes."""

    def __init__(self, encoder=Stack):
        super().__init__()
        self.embed, self.encoder, self.head = nn.Embedding(20, 16), encoder(), nn.Linear(16, 4)

    def pool(self, x, mask):
        return x.where(mask[..., None], 0).sum(1) / mask.sum(1, keepdim=True).clamp(min=1)

    def forward(self, ids, mask):
        return self.head(self.pool(self.encoder(self.embed(ids), mask), mask))


class PaddingInTheMean(Words):
    def pool(self, x, mask):
        return x.mean(1)


class PaddingIsRead(Words):
    def forward(self, ids, mask):
        return super().forward(ids, mask) + 1e-3 * self.embed(ids[:, -1])[:, :4]


class FirstSampleOnly(Words):
    def forward(self, ids, mask):
        return super().forward(ids, mask)[0]


class Bounded(Words):
    def forward(self, ids, mask):
        return 0.1 * super().forward(ids, mask).tanh()


class Tied(Words):
    """Tells each word itself."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(16, 20)
        self.head.weight = self.embed.weight


class TiedByCopy(Tied):
    def __init__(self):
        super().__init__()
        self.head.weight = nn.Parameter(self.embed.weight.detach().clone())


class SortsTheBatch(Words):
    def forward(self, ids, mask):
        return super().forward(ids, mask).sort(dim=0).values


dropping = partial(Stack, dropout=0.2)
