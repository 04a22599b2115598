"""Encoders and models with one fault in how they take padding, half precision or other kernels."""

from functools import partial

import torch
import torch.nn.functional as F
from attention_mutants import plain
from module_mutants import Layer, LowRank, Stack, TextModel, Tied
from torch import nn
from torch.utils.checkpoint import checkpoint

from core import attend

# --- Masks ------------------------------------------------------------------------------------------------------------


class PaddingIsBehind(Stack):
    """Counts the real tokens, and takes the first ones for real."""

    def forward(self, x, mask=None):
        return super().forward(x, None if mask is None else torch.arange(x.shape[1]) < mask.sum(1, keepdim=True))


class Unnormed(Layer):
    """Without norms, so that large padding makes large logits."""

    def __init__(self, **options):
        super().__init__(**options)
        del self.norms

    def norm(self, x, which):
        return x


class PaddingIsSeen(Stack):
    """Padding goes through all layers, and the mask alone keeps it from having an influence."""

    layer = Unnormed

    def __init__(self):
        super().__init__(self.layer)

    def before(self, x, mask):
        return x

    def after(self, x, mask):
        return x


class TenThousand(Unnormed):
    def attend(self, q, k, v, mask):
        added = 0 if mask is None else (~mask).to(q)[:, None, None] * -1e4
        return (q @ k.mT * q.shape[-1] ** -0.5 + added).softmax(-1) @ v


class MaskOfTenThousand(PaddingIsSeen):
    """Adds -10,000 to masked logits."""

    layer = TenThousand


class NaNInHalf(Unnormed):
    def attend(self, q, k, v, mask):
        return (plain if torch.is_autocast_enabled("cpu") else attend)(q, k, v, mask=mask)


class NaNOnEmptyRowInHalf(PaddingIsSeen):
    """In half precision a forbidden logit is -inf: NaN for a sample without real tokens."""

    layer = NaNInHalf


class NormOverTheBatch(Layer):
    """A BatchNorm in the feed-forward network, whose statistics are of padding too."""

    def __init__(self, **options):
        super().__init__(**options)
        self.batch_norm = nn.BatchNorm1d(16)

    def mlp(self, x):
        return super().mlp(self.batch_norm(x.mT).mT)


# --- Kernels ----------------------------------------------------------------------------------------------------------


class FastPathWithoutMask(Layer):
    def attend(self, q, k, v, mask):
        return attend(q, k, v, mask=mask if torch.is_grad_enabled() else None)


class WithWeights(Stack):
    """Can be asked for attention weights, for which another kernel is taken."""

    def other(self, q, k, v, mask):
        return attend(q, k, v, mask=mask)

    def forward(self, x, mask=None, weights=False):
        for layer in self.layers:
            layer.attend = self.other if weights else partial(Layer.attend, layer)
        return super().forward(x, mask)


class ForgetsTheMask(WithWeights):
    def other(self, q, k, v, mask):
        return attend(q, k, v)


class WeightsWithoutGradient(WithWeights):
    def other(self, q, k, v, mask):
        return attend(q.detach(), k, v, mask=mask)


class WeightsOfAnotherScale(WithWeights):
    def other(self, q, k, v, mask):
        return attend(1.01 * q, k, v, mask=mask)


def with_weights(module, x, mask=None):
    return module(x, mask, weights=True)


# --- Half precision ---------------------------------------------------------------------------------------------------


class HalfUnasked(Layer):
    """Its feed-forward network is always in bf16."""

    def mlp(self, x):
        with torch.autocast("cpu", torch.bfloat16):
            return super().mlp(x).to(x.dtype)


class Fp32Inside(Layer):
    """Switches autocast off for its norm, and does not convert what comes in."""

    def norm(self, x, which):
        with torch.autocast("cpu", enabled=False):
            return super().norm(x @ torch.eye(16, dtype=self.out.weight.dtype), which)


# --- Training ---------------------------------------------------------------------------------------------------------


class Dropping(Stack):
    def __init__(self):
        super().__init__(dropout=0.2)


class RecomputedWithOtherDropout(Dropping):
    """The random state is not kept for the backward pass."""

    def forward(self, x, mask=None):
        x = self.before(x, mask)
        for layer in self.layers:
            x = checkpoint(layer, x, mask, use_reentrant=False, preserve_rng_state=False)
        return self.after(x, mask)


def merge(module):
    """The adapter of `adapt`, merged into the layers that it is on."""
    for layer in module.layers:
        if isinstance(layer.up, LowRank):
            with torch.no_grad():
                layer.up.host.weight += layer.up.up.weight @ layer.up.down.weight
            layer.up = layer.up.host
    return module


def merge_and_keep(module):
    """The adapter stays, and counts twice."""
    adapters = [layer.up for layer in module.layers]
    merge(module)
    for layer, adapter in zip(module.layers, adapters, strict=True):
        layer.up = adapter
    return module


def merge_the_first(module):
    """The adapter of the last layer is lost."""
    module.layers[-1].up = module.layers[-1].up.host
    return merge(module)


class UntiedByLoading(Tied):
    """What is loaded replaces the parameters."""

    def load_state_dict(self, state, strict=True, assign=False):
        return super().load_state_dict({name: value.clone() for name, value in state.items()}, strict, assign=True)


# --- Models -----------------------------------------------------------------------------------------------------------


class WithPositions(TextModel):
    """Learned positions, counted from the first real token."""

    def __init__(self):
        super().__init__()
        self.positions = nn.Embedding(32, 16)

    def places(self, ids, mask):
        return (mask.cumsum(1) - 1).clamp(min=0)

    def forward(self, ids, mask=None):
        mask = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask
        x = self.embed(ids) + self.positions(self.places(ids, mask))
        return self.head(self.pool(self.encoder(x, mask), mask))


class PositionsIgnorePadding(WithPositions):
    def places(self, ids, mask):
        return torch.arange(ids.shape[1]).expand_as(ids)


class LastOfTheRow(WithPositions):
    """Reads the last real token, where it would be with padding behind it."""

    def pool(self, x, mask):
        return x[torch.arange(len(x)), (mask.sum(1) - 1).clamp(min=0)]


class NaNOfNone(TextModel):
    """The mean of no tokens."""

    def pool(self, x, mask):
        return x.where(mask[..., None], 0).sum(1) / mask.sum(1, keepdim=True)


# --- Sound ------------------------------------------------------------------------------------------------------------


class SoundModel(nn.Module):
    """Waves "b t" and their lengths to logits: a convolution, a norm, layers, the mean of real frames."""

    stride = 4

    def __init__(self):
        super().__init__()
        self.conv, self.gain = nn.Conv1d(1, 16, 8, self.stride), nn.Parameter(torch.ones(16))
        self.smooth, self.encoder, self.head = nn.Conv1d(16, 16, 3, padding=1), Stack(), nn.Linear(16, 4)

    def real(self, x, lengths):
        frames = (lengths - 8).div(self.stride, rounding_mode="floor") + 1
        return torch.arange(x.shape[2]) < frames[:, None]

    def norm(self, x, real):
        """Over the real frames of each sample and channel."""
        x, count = x.where(real, 0), real.sum(-1, keepdim=True)
        x = (x - x.sum(-1, keepdim=True) / count).where(real, 0)
        return x * (x.square().sum(-1, keepdim=True) / count + 1e-5).rsqrt()

    def convolve(self, x, real):
        return self.smooth(x.where(real, 0))

    def forward(self, waves, lengths):
        x = self.conv(waves[:, None])
        mask = self.real(x, lengths)
        x = self.gain[:, None] * self.norm(x, mask[:, None])
        x = self.encoder((x + self.convolve(x, mask[:, None])).mT, mask)
        return self.head(x.where(mask[..., None], 0).sum(1) / mask.sum(1, keepdim=True))


class NormOverPadding(SoundModel):
    """As wav2vec 2.0's group norm."""

    def norm(self, x, real):
        return F.group_norm(x, 16)


class ConvolvesAcrossTheEnd(SoundModel):
    """Its first frames of padding are not zero: the norm shifts them."""

    def norm(self, x, real):
        return super().norm(x, real) + 1

    def convolve(self, x, real):
        return self.smooth(x)


class FramesRoundedUp(SoundModel):
    """Takes a frame that has padding in it for a real one."""

    def real(self, x, lengths):
        return torch.arange(x.shape[2]) < ((lengths + self.stride - 1) // self.stride)[:, None]


class StatisticsOfPadding(SoundModel):
    """A BatchNorm over all frames."""

    def __init__(self):
        super().__init__()
        self.batch_norm = nn.BatchNorm1d(16)

    def norm(self, x, real):
        return self.batch_norm(x)


class MaskOfTheFirstTokens(Layer):
    def attend(self, q, k, v, mask):
        return attend(q, k, v, mask=None if mask is None else mask | (torch.arange(k.shape[2]) >= 32))
