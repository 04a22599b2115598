"""Random changes of training clips."""

from collections.abc import Callable
from typing import Annotated

import torch
from annotated_types import Interval
from pydantic import Strict
from torch.nn.utils.rnn import pad_sequence

from core import Batch
from core.config import SettingError, ZeroToOne, configclass

Alpha = Annotated[float, Strict(), Interval(ge=0, le=1000)]
Noise = Annotated[float, Strict(), Interval(ge=-100, le=200)]
Decibels = Annotated[float, Strict(), Interval(ge=0, le=100)]


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
