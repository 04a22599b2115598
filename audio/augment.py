"""Random changes of training clips."""

import math
import random
from collections.abc import Callable
from typing import Annotated

import torch
import torch.nn.functional as F
from annotated_types import Interval
from jaxtyping import Float
from pydantic import Strict
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torchaudio import functional as AF

from core import Batch
from core.config import SettingError, ZeroToOne, configclass

from .decoding import resample

Alpha = Annotated[float, Strict(), Interval(ge=0, le=1000)]
Noise = Annotated[float, Strict(), Interval(ge=-100, le=200)]
Decibels = Annotated[float, Strict(), Interval(ge=0, le=100)]
POINTS, CURVE = 6, 512  # of a random curve over the frequencies, and how many it has with those in between
BEND = 10.0  # the highest frequency over that at which the scale of the points bends
Speed = Annotated[float, Strict(), Interval(ge=0, le=0.5)]


@configclass
class Mixing:
    """Random mixtures of training clips; off by default."""

    mixup: Alpha = 0.0
    """Alpha of mixup, of waveforms, from 0.001; 0 for none."""

    def __post_init__(self):
        if 0 < self.mixup < 1e-3:  # torch's beta distribution would be of 0 in single precision
            raise SettingError(type(self), "mixup", f"must be 0 or at least 0.001, not {self.mixup:g}")


@configclass
class Augment(Mixing):
    """Random changes of a training clip; all off by default."""

    gain: Decibels = 0.0
    """Decibels, up or down."""
    noise: Noise | None = None
    """Least decibels of the clip over the white noise that is added to it (30 more at most); None for no noise."""
    shift: ZeroToOne = 0.0
    """Share of the clip's length that it is moved by, to either side; what leaves at one end enters at the other."""
    speed: Speed = 0.0
    """Most by which the clip is faster or slower, and its pitch higher or lower, as a share (Ko et al. 2015: 0.1)."""
    equalise: Decibels = 0.0
    """Most decibels by which a part of the frequencies gets louder or softer, as if heard by another microphone: drawn
    at six frequencies, and in between a line (Nam et al. 2022, FilterAugment; here of the waveform)."""


def train_transform(
    size: int | None, augment: Augment, longest: int | None = None
) -> Callable[[Float[Tensor, "s"]], Float[Tensor, "t"]]:
    """A random stretch of a clip, changed at random; drawn from the global random state.

    size: samples of the stretch; None for the whole. longest: samples beyond which no clip becomes slower.
    """

    def transform(clip: Float[Tensor, "s"]) -> Float[Tensor, "t"]:
        if augment.speed:
            clip = resample(clip, _percent(augment.speed, len(clip), size or longest), 100)
        if size is not None and len(clip) > size:
            clip = clip[random.randrange(len(clip) - size + 1) :][:size]
        if augment.shift:
            clip = clip.roll(round(random.uniform(-augment.shift, augment.shift) * len(clip)))
        if augment.equalise:
            clip = _equalised(clip, augment.equalise)
        if augment.noise is not None and clip.any():
            level = torch.tensor(augment.noise + random.uniform(0, 30))
            clip = AF.add_noise(clip, torch.randn_like(clip), level)
        if augment.gain:
            clip = AF.gain(clip, random.uniform(-augment.gain, augment.gain))
        return clip

    return transform


def _percent(speed: float, samples: int, longest: int | None) -> int:
    """A random speed in percent, whole so that few filters are needed."""
    percent = 100 + random.randint(-round(100 * speed), round(100 * speed))
    if longest is None or samples > longest:
        return percent
    return max(percent, min(math.ceil(100 * samples / longest), 100))


def _equalised(clip: Float[Tensor, "s"], limit: float) -> Float[Tensor, "s"]:
    """Each frequency louder or softer by at most so many decibels."""
    spectrum = torch.fft.rfft(clip)
    decibels = F.interpolate((2 * torch.rand(1, 1, POINTS) - 1) * limit, CURVE, mode="linear", align_corners=True)
    # The points are equally far apart on a scale that is nearly linear below and logarithmic above, as mel is.
    place = torch.log1p(torch.linspace(0, BEND, len(spectrum))) / math.log1p(BEND)
    return torch.fft.irfft(spectrum * 10 ** (decibels[0, 0, (place * (CURVE - 1)).round().long()] / 20), len(clip))


def make_mix(augment: Mixing, classes: int) -> Callable[[Batch], Batch] | None:
    """Mixup of waveforms; targets become probabilities. A mixed clip is as long as the longer of its two."""
    if not augment.mixup:
        return None
    from torchvision.transforms.v2 import MixUp  # a second to import

    mixup = MixUp(alpha=augment.mixup, num_classes=classes)

    def mix(batch: Batch) -> Batch:
        ragged = len(batch.inputs) == 1
        if ragged:
            (clips,) = batch.inputs
            lengths, waveforms = torch.tensor([len(clip) for clip in clips]), pad_sequence(clips, batch_first=True)
        else:
            waveforms, lengths = batch.inputs
        mixed, targets = mixup(waveforms[:, None, None], batch.targets)
        lengths = torch.maximum(lengths, lengths.roll(1))  # each with the one before
        if ragged:
            return Batch(([clip[:n] for clip, n in zip(mixed[:, 0, 0], lengths.tolist(), strict=True)],), targets)
        return Batch((mixed[:, 0, 0], lengths), targets)

    return mix
