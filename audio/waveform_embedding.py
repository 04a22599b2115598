"""Waveforms become tokens by convolutions; those of a clip do not depend on its padding."""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from core import Tokens, init_weights
from core.attention.packing import Packing, Place

EPSILON = 1e-7  # added to the variance of a waveform, as in transformers


class Convolution(nn.Module):
    """A convolution without padding, a norm and GELU.

    norm: clip, each channel over all frames of the clip (GroupNorm); frame, each frame over its channels (LayerNorm).
    """

    def __init__(
        self,
        channels: tuple[int, int],
        kernel: int,
        stride: int,
        *,
        bias: bool,
        norm: Literal["clip", "frame", "none"],
    ):
        super().__init__()
        self.conv = nn.Conv1d(*channels, kernel, stride=stride, bias=bias)
        kinds = {"clip": lambda count: nn.GroupNorm(count, count), "frame": nn.LayerNorm, "none": lambda count: None}
        self.norm = kinds[norm](channels[1])

    def forward(
        self, x: Float[Tensor, "b c_in samples"], counts: Int[Tensor, "b"] | None = None
    ) -> Float[Tensor, "b c frames"]:
        """counts: the frames of each clip that the norm is over; None: all of them."""
        x = self.conv(x)
        if isinstance(self.norm, nn.GroupNorm):
            x = self.norm(x) if counts is None else norm_of_clips(x, counts, self.norm)
        elif self.norm is not None:
            x = self.norm(x.mT).mT
        return F.gelu(x)

    def frames(self, samples: Int[Tensor, "b"]) -> Int[Tensor, "b"]:
        return (samples - self.conv.kernel_size[0]) // self.conv.stride[0] + 1


class WaveformEmbedding(nn.Module):
    """Convolutions of the waveform, a projection, and positions by further convolutions (Baevski et al. 2020).

    A clip shorter than a frame is followed by silence. For the other arguments see `WaveformConfig`.

    blind: whether norms and positions ignore padding.
    """

    def __init__(
        self,
        dim: int,
        conv_dims: Sequence[int],
        conv_kernels: Sequence[int],
        conv_strides: Sequence[int],
        *,
        conv_bias: bool,
        conv_norm: Literal["first", "all"],
        feature_norm: bool,
        position_layers: int,
        position_kernel: int,
        position_groups: int,
        position_norm: bool,
        norm: bool,
        eps: float,
        dropout: float,
        blind: bool,
    ):
        super().__init__()
        self.blind, self.position_norm = blind, position_norm
        channels = zip((1, *conv_dims), conv_dims, strict=False)
        self.convolutions = nn.ModuleList(
            Convolution(
                between,
                kernel,
                stride,
                bias=conv_bias,
                norm="frame" if conv_norm == "all" else "none" if number else "clip",
            )
            for number, (between, kernel, stride) in enumerate(zip(channels, conv_kernels, conv_strides, strict=True))
        )
        self.feature_norm = nn.LayerNorm(conv_dims[-1], eps=eps) if feature_norm else nn.Identity()
        self.projection = nn.Linear(conv_dims[-1], dim)
        self.positions = nn.ModuleList(
            nn.Conv1d(dim, dim, position_kernel, padding=position_kernel // 2, groups=position_groups)
            for _ in range(position_layers)
        )
        self.norm = nn.LayerNorm(dim, eps=eps) if norm else nn.Identity()
        self.dropout = nn.Dropout(dropout)
        init_weights(self)
        self.shortest = 1
        for kernel, stride in zip(reversed(conv_kernels), reversed(conv_strides), strict=True):
            self.shortest = (self.shortest - 1) * stride + kernel

    def forward(self, waveforms: Float[Tensor, "b samples"], lengths: Int[Tensor, "b"] | None = None) -> Tokens:
        """lengths: samples of each clip, after which there are zeros; None: all samples."""
        found, counts = self.convolved(waveforms, lengths)
        x = self.projection(self.feature_norm(found))
        real = None if counts is None else torch.arange(x.shape[1], device=x.device) < counts[:, None]
        x = x if real is None else x.where(real[..., None], 0)
        x = x + self.positions_of(x, real)
        return Tokens(self.dropout(self.norm(x)), mask=real)

    def row(self, clips: Sequence[Float[Tensor, "1 _"]]) -> Tokens:
        """Clips of any lengths as a packed row."""
        found = [self.convolved(clip)[0] for clip in clips]
        counts = [features.shape[1] for features in found]
        x = self.projection(self.feature_norm(torch.cat(found, dim=1)))
        x = x + torch.cat([self.positions_of(part) for part in x.split(counts, dim=1)], dim=1)
        return Tokens(self.dropout(self.norm(x)), packing=Packing.of(map(Place, counts)))

    def convolved(
        self, waveforms: Float[Tensor, "b samples"], lengths: Int[Tensor, "b"] | None = None
    ) -> tuple[Float[Tensor, "b n c"], Int[Tensor, "b"] | None]:
        """The features of frames, and how many frames each clip has."""
        x = F.pad(waveforms, (0, max(self.shortest - waveforms.shape[1], 0)))[:, None]
        counts = None if lengths is None else lengths.clamp(min=self.shortest)
        for layer in self.convolutions:
            assert isinstance(layer, Convolution)
            counts = None if counts is None else layer.frames(counts)
            x = layer(x, counts if self.blind else None)
        return x.mT, counts

    def positions_of(
        self, x: Float[Tensor, "b n d"], real: Bool[Tensor, "b n"] | None = None
    ) -> Float[Tensor, "b n d"]:
        length, x = x.shape[1], x.mT
        for layer in self.positions:
            x = layer(x)[..., :length]  # an even kernel gives one frame more
            x = F.layer_norm(x.mT, x.shape[1:2]).mT if self.position_norm else x
            x = F.gelu(x)
            if self.blind and real is not None:
                x = x.where(real[:, None], 0)
        return x.mT


def norm_of_clips(
    x: Float[Tensor, "b c frames"], counts: Int[Tensor, "b"], norm: nn.GroupNorm
) -> Float[Tensor, "b c frames"]:
    """A GroupNorm with a group for each channel, over the first frames of each clip."""
    with torch.autocast(x.device.type, enabled=False):
        wide, sizes = x.to(torch.promote_types(x.dtype, torch.float32)), counts[:, None, None]
        real = torch.arange(x.shape[2], device=x.device) < sizes
        centred = wide - wide.where(real, 0).sum(dim=2, keepdim=True) / sizes
        variance = centred.where(real, 0).square().sum(dim=2, keepdim=True) / sizes
        centred = centred * (variance + norm.eps).rsqrt() * norm.weight[:, None] + norm.bias[:, None]
        return centred.to(norm.weight.dtype)


def normalised(
    waveforms: Float[Tensor, "b samples"], lengths: Int[Tensor, "b"] | None = None
) -> Float[Tensor, "b samples"]:
    """Each clip with mean 0 and variance 1 over its samples, and zeros after them; lengths: None for all samples."""
    if lengths is None:
        variance, mean = torch.var_mean(waveforms, dim=1, correction=0, keepdim=True)
        return (waveforms - mean) / (variance + EPSILON).sqrt()
    sizes = lengths[:, None]
    inside = torch.arange(waveforms.shape[1], device=waveforms.device) < sizes
    centred = (waveforms - waveforms.where(inside, 0).sum(dim=1, keepdim=True) / sizes).where(inside, 0)
    return centred / (centred.square().sum(dim=1, keepdim=True) / sizes + EPSILON).sqrt()
