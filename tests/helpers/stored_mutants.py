"""Encoders with a cache, models of images with positions that can be resized, and quantised weights: right ones, and
those with one fault each, which the kit must find."""

import copy

import torch
import torch.nn.functional as F
from einops import rearrange
from module_mutants import LowRank, Stack, adapt
from torch import nn

from core import attend


class Remembers(nn.Module):
    """A causal layer with a cache of keys and values, and positions that are counted on."""

    def __init__(self):
        super().__init__()
        self.qkv, self.out, self.place = nn.Linear(16, 48), nn.Linear(16, 16), nn.Embedding(64, 16)

    def places(self, first, length):
        return torch.arange(first, first + length)

    def sees(self, queries, keys):
        return torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries)

    def join(self, old, new):
        return torch.cat([old, new], dim=2)

    def forward(self, x, cache=None):
        past = 0 if cache is None else cache[0].shape[2]
        places = self.place(self.places(past, x.shape[1]))
        q, k, v = rearrange(self.qkv(x + places), "b n (t h c) -> t b h n c", t=3, h=2)
        if cache is not None:
            k, v = self.join(cache[0], k), self.join(cache[1], v)
        out = attend(q, k, v, mask=self.sees(q.shape[2], k.shape[2])[None, None])
        return self.out(rearrange(out, "b h n c -> b n (h c)")), (k, v)


def at_once(module, x, mask=None):
    return module(x)[0]


def with_cache(module, parts):
    outs, cache = [], None
    for part in parts:
        out, cache = module(part, cache)
        outs.append(out)
    return torch.cat(outs, dim=1)


class PositionsBeginAgain(Remembers):
    def places(self, first, length):
        return torch.arange(length)


class MaskOfTheFirstKeys(Remembers):
    """As torch's is_causal, whose mask begins at the upper left."""

    def sees(self, queries, keys):
        return torch.ones(queries, keys, dtype=torch.bool).tril()


class ForgetsTheOldest(Remembers):
    def join(self, old, new):
        return super().join(old, new)[:, :, -8:] if new.shape[2] == 1 else super().join(old, new)

    def sees(self, queries, keys):
        return super().sees(queries, keys)


class KeepsTheCache(Remembers):
    """What a call leaves is taken up by the next one, whoever makes it."""

    left = None

    def forward(self, x, cache=None):
        out, self.left = super().forward(x, self.left if cache is None else cache)
        return out, self.left


# --- Positions --------------------------------------------------------------------------------------------------------


class Pictures(nn.Module):
    """A ViT of 3 x 3 patches, whose positions are resized where an image is of another size."""

    mode = "bicubic"

    def __init__(self):
        super().__init__()
        self.patches, self.encoder, self.head = nn.Conv2d(3, 16, 4, 4), Stack(), nn.Linear(16, 4)
        self.positions = nn.Parameter(torch.randn(1, 10, 16))
        self.token = nn.Parameter(torch.randn(1, 1, 16))

    def interpolated(self, table, size):
        return F.interpolate(table, size, mode=self.mode, align_corners=False)

    def resize(self, rows, columns):
        table = self.positions[:, 1:].transpose(1, 2).unflatten(2, (3, 3))
        table = self.interpolated(table.detach(), (rows, columns))
        self.positions = nn.Parameter(torch.cat([self.positions[:, :1], table.flatten(2).transpose(1, 2)], dim=1))
        return self

    def forward(self, images):
        x = self.patches(images).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], dim=1) + self.positions
        return self.head(self.encoder(x).mean(1))


def resize(module, rows, columns):
    return module.resize(rows, columns)


class BilinearPictures(Pictures):
    mode = "bilinear"


class AntialiasedPictures(Pictures):
    def interpolated(self, table, size):
        return F.interpolate(table, size, mode="bicubic", antialias=True)


class NearestPictures(Pictures):
    def interpolated(self, table, size):
        return F.interpolate(table, size, mode="nearest-exact")


class SmoothsAtItsSize(Pictures):
    def interpolated(self, table, size):
        return super().interpolated(super().interpolated(table, (8, 8)), size)


class RoundsWhenResized(Pictures):
    def interpolated(self, table, size):
        return super().interpolated(table.half().to(table.dtype), size)


class ColumnsForRows(Pictures):
    def interpolated(self, table, size):
        return super().interpolated(table, size[::-1])


class ResizesTheRowOfAll(Pictures):
    """As if the patches lay in one row."""

    def interpolated(self, table, size):
        row = F.interpolate(table.flatten(2), size[0] * size[1], mode="linear")
        return row.unflatten(2, size)


class SamplesOffCentre(Pictures):
    """A factor that is a little larger than that of the sizes, as against rounding."""

    def interpolated(self, table, size):
        factors = tuple((new + 0.1) / old for new, old in zip(size, table.shape[2:], strict=True))
        return F.interpolate(table, scale_factor=factors, mode="bicubic", recompute_scale_factor=False)


class ForgetsItsPositions(Pictures):
    def interpolated(self, table, size):
        return super().interpolated(0 * table, size)


# --- Quantised weights ------------------------------------------------------------------------------------------------


class Int8(nn.Module):
    """A linear layer whose weights are whole numbers of a step, one for each output."""

    levels = 127

    def __init__(self, linear):
        super().__init__()
        self.register_buffer("step", linear.weight.detach().abs().amax(1, keepdim=True) / self.levels)
        self.register_buffer("whole", self.rounded(linear.weight))
        self.bias = nn.Parameter(linear.bias.detach().clone())

    def rounded(self, weight):
        return (weight.detach() / self.step).round().clamp(-self.levels, self.levels).to(torch.int8)

    @property
    def weight(self):
        return self.whole * self.step

    def forward(self, x):
        return F.linear(x, self.weight, self.bias)


class FourBits(Int8):
    levels = 7


class CutOff(Int8):
    """Rounds to 0, as a conversion to whole numbers does."""

    def rounded(self, weight):
        return (weight.detach() / self.step).to(torch.int8)


def quantise(module, kind=Int8):
    for layer in module.layers:
        layer.up = kind(layer.up)
    return module


def cut_off(module):
    return quantise(module, CutOff)


def in_four_bits(module):
    return quantise(module, FourBits)


def in_bf16(module):
    return module.bfloat16()


def adapt_in_fp32(module):
    """The adapter's input and output are of the dtype of the layer."""
    module = adapt(module)
    for layer in module.layers:
        layer.up = InFp32(layer.up)
    return module


class InFp32(nn.Module):
    def __init__(self, adapted):
        super().__init__()
        self.host, self.down, self.up = adapted.host, adapted.down.float(), adapted.up.float()

    def forward(self, x):
        return self.host(x) + self.up(self.down(x.to(self.up.weight.dtype))).to(x.dtype)


def added(layer):
    return layer.up.up.weight @ layer.up.down.weight


@torch.no_grad()
def merge_in_full(module):
    """Into a layer of its own precision."""
    for layer in module.layers:
        merged = nn.Linear(16, 32).to(added(layer))
        merged.weight.copy_(layer.up.host.weight + added(layer))
        merged.bias.copy_(layer.up.host.bias)
        layer.up = merged
    return module


@torch.no_grad()
def merge_and_round(module):
    for layer in module.layers:
        host = copy.deepcopy(layer.up.host)
        host.whole.copy_(host.rounded(host.weight + added(layer)))
        layer.up = host
    return module


def adapt_quantised(module):
    module.requires_grad_(False)
    for layer in module.layers:
        layer.up = LowRank(layer.up, 0.0)
    return module
