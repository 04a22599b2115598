"""Encoders and models with one fault each, which the kit must find."""

import copy
from functools import partial

import torch
import torch.nn.functional as F
from attention_mutants import plain
from einops import rearrange
from torch import nn

from core import attend


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

    def __init__(self, layer=Layer, **options):
        super().__init__()
        self.layers = nn.ModuleList(layer(**options) for _ in range(2))

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


class DetachedInput(Layer):
    def forward(self, x, *mask):
        return super().forward(x.detach(), *mask)


class HalfAGradient(Layer):
    def mlp(self, x):
        out = super().mlp(x)
        return (out + out.detach()) / 2


class DetachedBranch(Layer):
    """What the attention takes has no gradient."""

    def attention(self, x, mask):
        return super().attention(x.detach(), mask)


class ThreeTimesTheGradient(Stack):
    def before(self, x, mask):
        x = super().before(x, mask)
        return 3 * x - 2 * x.detach()


class IgnoresMask(Layer):
    def attend(self, q, k, v, mask):
        return attend(q, k, v)


class NaNOnEmptyRow(Layer):
    def attend(self, q, k, v, mask):
        return plain(q, k, v, mask=mask)


class CausalLayer(Layer):
    diagonal = 0

    def attend(self, q, k, v, mask):
        pairs = torch.ones(q.shape[2], q.shape[2], dtype=torch.bool).tril(self.diagonal)[None, None]
        return attend(q, k, v, mask=pairs if mask is None else pairs & mask[:, None, None])


class CausalAmongTheFirst(CausalLayer):
    """Tokens from the 32nd on see each other, whatever their order."""

    def attend(self, q, k, v, mask):
        late = torch.arange(k.shape[2]) >= 32
        pairs = torch.ones(k.shape[2], k.shape[2], dtype=torch.bool).tril() | (late & late[:, None])
        return attend(q, k, v, mask=pairs[None, None] if mask is None else pairs & mask[:, None, None])


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
        return super().norm(x.exp().log1p(), which)


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


class TextModel(nn.Module):
    """Token ids to logits of four classes."""

    def __init__(self, encoder=Stack):
        super().__init__()
        self.embed, self.encoder, self.head = nn.Embedding(20, 16), encoder(), nn.Linear(16, 4)

    def pool(self, x, mask):
        return x.where(mask[..., None], 0).sum(1) / mask.sum(1, keepdim=True).clamp(min=1)

    def forward(self, ids, mask=None):
        """ids: "b n", or a list of samples "n" of any lengths."""
        if isinstance(ids, list):
            return self.forward_ragged(ids)
        mask = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask
        return self.head(self.pool(self.encoder(self.embed(ids), mask), mask))

    def forward_ragged(self, samples):
        return torch.cat([self.forward(ids[None]) for ids in samples])


class PaddingInTheMean(TextModel):
    def pool(self, x, mask):
        return x.mean(1)


class PaddingIsRead(TextModel):
    def forward(self, ids, mask):
        return super().forward(ids, mask) + 1e-3 * self.embed(ids[:, -1])[:, :4]


class PaddedToTheLongest(TextModel):
    """A list of samples is padded, and the padding is read."""

    def forward_ragged(self, samples):
        return self.forward(nn.utils.rnn.pad_sequence(samples, batch_first=True))


class ReadsTheNextSample(TextModel):
    def forward_ragged(self, samples):
        out = super().forward_ragged(samples)
        return out + 1e-3 * out.roll(1, dims=0)


class FirstSampleOnly(TextModel):
    def forward(self, ids, mask):
        return super().forward(ids, mask)[0]


class Bounded(TextModel):
    def forward(self, ids, mask):
        return 0.1 * super().forward(ids, mask).tanh()


class Tied(TextModel):
    """Predicts each token itself."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(16, 20)
        self.head.weight = self.embed.weight


class TiedByCopy(Tied):
    def __init__(self):
        super().__init__()
        self.head.weight = nn.Parameter(self.embed.weight.detach().clone())


class SortsTheBatch(TextModel):
    def forward(self, ids, mask):
        return super().forward(ids, mask).sort(dim=0).values


dropping = partial(Stack, dropout=0.2)
