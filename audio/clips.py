"""The clips that a model takes, and what is refused."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated

import torch.nn.functional as F
from annotated_types import Interval
from jaxtyping import Float, Int
from pydantic import Strict
from torch import Tensor

from core import UserError
from core.config import Count, Size, Whole

SampleRate = Annotated[Whole, Interval(ge=1_000, le=1_000_000)]
Trim = Annotated[float, Strict(), Interval(ge=1, le=120)]
Waveforms = Float[Tensor, "b samples"] | Sequence[Float[Tensor, "_"]]
"""A batch, or clips of any lengths, which are packed without padding."""


@dataclass(frozen=True, kw_only=True)
class AudioFormat:
    """The clips that a model takes."""

    sample_rate: SampleRate
    trim: Trim | None
    """Decibels; see `trimmed`."""
    shortest: Size
    """Samples of a frame."""
    shift: Size
    """Samples from frame to frame."""
    longest: Count | None
    """Samples; None for no limit."""
    usual: Count
    """Samples of a clip of the usual length; what is predicted at once is measured by it."""
    count_tokens: Callable[[int], int]
    """How many tokens, class and distillation tokens included, a clip of so many samples is."""


def trimmed(clip: Float[Tensor, "samples"], form: AudioFormat) -> Float[Tensor, "kept"]:
    """A clip without its pauses at both ends: stretches of 10 ms that are `form.trim` decibels softer than the loudest
    one, but for the one next to the sound. The whole clip if `form.trim` is None, or if it is silent."""
    if form.trim is None or not len(clip):
        return clip
    size = form.sample_rate // 100
    centred = clip - clip.mean()  # a constant, as of a microphone's current, is no sound
    energies = F.pad(centred, (0, -len(clip) % size)).view(-1, size).square().mean(dim=1)
    loud = (~(energies < energies.max() * 10 ** (-form.trim / 10))).nonzero()  # with NaN, all of it
    return clip[max(int(loud[0]) - 1, 0) * size : (int(loud[-1]) + 2) * size]


def check_length(what: str, samples: int, form: AudioFormat) -> None:
    """Refuse a clip that is longer than a model takes: it is not cut silently, since audio would be lost."""
    if form.longest is None or samples <= form.longest:
        return
    seconds, limit = (n / form.sample_rate for n in (samples, form.longest))
    frames, most = (max(n - form.shortest, 0) // form.shift + 1 for n in (samples, form.longest))
    raise UserError(
        f"{what} of {seconds:.2f} s ({frames} frames) is longer than the {limit:.2f} s ({most} frames) that the model "
        "takes: cut it into windows (--window to predict, --data.seconds to train), or set a larger max_frames "
        "(--model.max-frames)."
    )


def check_clips(waveforms: Sequence[Float[Tensor, "_"]], form: AudioFormat) -> None:
    """Refuse a list of clips in which a model cannot take one, and say which."""
    if not waveforms:
        raise UserError("A list of no clips: give at least one.")
    for number, waveform in enumerate(waveforms):
        if not isinstance(waveform, Tensor) or waveform.ndim != 1:
            shape = f"a tensor of shape {tuple(waveform.shape)}" if isinstance(waveform, Tensor) else repr(waveform)
            raise UserError(f"Clip {number} of the list must be a waveform, a tensor with one axis, not {shape[:80]}.")
        if not len(waveform):
            raise UserError(f"Clip {number} of the list has no samples: leave it out.")
        check_length(f"Clip {number} of the list", len(waveform), form)


def is_list(waveforms: Waveforms, lengths: Int[Tensor, "b"] | None) -> bool:
    """Whether these are a list of clips, which has no lengths, and not a batch."""
    if isinstance(waveforms, Tensor):
        return False
    if lengths is not None:
        raise UserError("A list of clips has no padding: leave out the lengths.")
    return True


def check_lengths(lengths: Int[Tensor, "b"], form: AudioFormat) -> None:
    """Refuse the lengths of a batch in which a model cannot take a clip."""
    if int(lengths.min()) < 1:
        raise UserError("A clip has no samples: leave it out.")
    check_length("A clip", int(lengths.max()), form)
