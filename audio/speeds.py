"""Clips at other speeds, as evaluation averages them."""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torchaudio.functional import resample

from .clips import AudioFormat, Waveforms


def at_speed(
    waveforms: Waveforms, lengths: Int[Tensor, "b"] | None, percent: int, form: AudioFormat
) -> list[Float[Tensor, "_"]]:
    """Each clip at a speed in percent, and its pitch with it: above 100 faster and higher. A clip that would then be
    too long for a model stays as it is. In single precision: in half of it a clip would get noise in its pauses."""
    clips = [*waveforms] if lengths is None else [clip[:end] for clip, end in zip(waveforms, lengths, strict=True)]
    longest = float("inf") if form.longest is None else form.longest * percent / 100
    with torch.autocast(clips[0].device.type, enabled=False):
        return [clip if len(clip) > longest else resample(clip.float(), percent, 100) for clip in clips]
