"""Audio files are read as mono waveforms of a given sample rate."""

from collections.abc import Iterator
from fractions import Fraction
from functools import lru_cache
from itertools import groupby
from math import ceil

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from soundfile import LibsndfileError, SoundFile
from torch import Tensor
from torchaudio.transforms import Resample

from core import UserError
from core.files import File, read_bytes

from .streams import Bytes, Recording, Unreadable, recordings

SUFFIXES = (".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".aifc", ".au", ".snd", ".caf")
RATES = (1_000, 1_000_000)  # Hz; a header with any other rate is broken
LOUDEST = 2.0**32  # floats may be on the scale of integers; the energy of much larger values is infinite
BLOCK = 2**18  # samples of all channels that are decoded at once
FILTERS = 2**22  # most weights of a resampler that is kept
AT_ONCE = 2**21  # weights that are computed at once, where they are not kept
UNKNOWN = 2**63 - 1  # libsndfile's number of samples if it is unknown


def read_audio(path: File, sample_rate: int) -> Float[Tensor, "samples"]:
    """A audio file of any rate and number of channels as mono at `sample_rate`; joined files are concatenated."""
    content = read_bytes(path, "audio file")
    if not content:
        raise UserError(f"{path} is an empty file.")
    try:
        parts = [_decode(path, recording) for recording in recordings(content)]
    except Unreadable as error:
        raise UserError(f"{path} {error}.") from None
    except LibsndfileError as error:
        reason = error.error_string.removeprefix("Error :").strip().rstrip(".").replace(". ", ": ")
        if "does not exist" in reason:  # libsndfile's message for invalid MPEG frames
            reason = "no audio in it can be decoded"
        raise UserError(f"{path} is not an audio file that can be read, or is broken: {reason}.") from None
    groups = [(rate, _join([waveform for _, waveform in same])) for rate, same in groupby(parts, lambda part: part[0])]
    waveform = _join([resample(waveform, rate, sample_rate) for rate, waveform in groups])
    if len(waveform) == 0:
        raise UserError(f"{path} has no samples.")
    low, high = waveform.aminmax()
    if not (low >= -LOUDEST and high <= LOUDEST):  # a NaN is both the lowest and the highest
        raise UserError(f"{path} holds samples that are not numbers (NaN or infinite), or are beyond 2**32.")
    return waveform


def _join(waveforms: list) -> Float[Tensor, "samples"]:
    return waveforms[0] if len(waveforms) == 1 else torch.cat(waveforms)  # a single one need not be copied


def resample(waveform: Float[Tensor, "samples"], rate: int, wanted: int) -> Float[Tensor, "resampled"]:
    if rate == wanted or not len(waveform):
        return waveform
    ratio = Fraction(rate, wanted)
    if ratio.numerator * ratio.denominator > FILTERS:  # as for 44,101 Hz
        return _resample_each(waveform, ratio)
    return _resampler(ratio.numerator, ratio.denominator)(waveform)


@lru_cache(maxsize=128)
def _resampler(rate: int, wanted: int) -> Resample:
    """A resampler with its filters, which cost as much to compute as to apply."""
    return Resample(rate, wanted)


def _resample_each(waveform: Float[Tensor, "samples"], ratio: Fraction) -> Float[Tensor, "resampled"]:
    """By the same filter, a sinc in a Hann window, which is computed for each sample."""
    cutoff, zeros = min(1.0, float(1 / ratio)) * 0.99, 6  # torchaudio's defaults
    reach = ceil(zeros / cutoff)
    padded = F.pad(waveform, (reach, reach))
    parts = []
    for positions in torch.arange(ceil(len(waveform) / ratio)).split(max(AT_ONCE // reach, 1)):
        remainder = positions * ratio.numerator  # whole numbers are exact in long clips too
        before, phase = remainder // ratio.denominator, remainder % ratio.denominator / ratio.denominator
        taps = torch.arange(-reach + 1, reach + 1)
        time = ((taps - phase.double()[:, None]) * cutoff).clamp(-zeros, zeros)
        weights = cutoff * torch.sinc(time) * torch.cos(time * torch.pi / zeros / 2).square()
        parts.append((padded[before[:, None] + taps + reach] * weights.float()).sum(dim=1))
    return torch.cat(parts)


class _ToTheEnd(SoundFile):
    """It is not seekable: soundfile would seek after each block, which is inexact in compressed formats."""

    def seekable(self) -> bool:
        return False


def _decode(path: File, recording: Recording) -> tuple[int, Float[Tensor, "samples"]]:
    """The rate of a recording, and the mean of its channels."""
    with _ToTheEnd(Bytes(recording.content)) as file:
        rate, stated = file.samplerate, recording.samples or file.frames
        if not RATES[0] <= rate <= RATES[1]:
            raise UserError(f"{path} has a broken header: it states {rate:,} samples a second.")
        waveform = torch.cat([torch.zeros(0), *map(_mono, _blocks(file, stated))])
    if len(waveform) < stated < UNKNOWN:
        raise UserError(
            f"{path} is cut short or broken: it promises {stated:,} samples, and {len(waveform):,} can be read."
        )
    return rate, waveform


def _blocks(file: SoundFile, stated: int) -> Iterator[Float[np.ndarray, "samples channels"]]:
    """All samples: those that the header states, and any after them."""
    read, size = 0, max(BLOCK // file.channels, 1)
    while read < file.frames:
        wanted = min(stated - read, size) if read < stated else size
        try:
            block = file.read(wanted, dtype="float32", always_2d=True)
        except LibsndfileError:
            if read >= stated:  # what follows the stated samples need not be waveform
                return
            raise
        yield block
        read += len(block)
        if len(block) < wanted:
            return


def _mono(block: Float[np.ndarray, "samples channels"]) -> Float[Tensor, "samples"]:
    channels = torch.from_numpy(block).unbind(dim=1)
    return sum(channels[1:], channels[0]) / len(channels)  # faster than mean() over few channels
