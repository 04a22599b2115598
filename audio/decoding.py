"""Sound files as mono waveforms at the rate that is asked for, read to their ends."""

from collections.abc import Iterator
from fractions import Fraction
from functools import lru_cache
from io import BytesIO
from itertools import groupby
from math import ceil, isqrt
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from soundfile import LibsndfileError, SoundFile
from torch import Tensor
from torchaudio.transforms import Resample

from core import UserError
from core.files import read_bytes

from .streams import CutShort, Recording, recordings

SUFFIXES = (".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".aifc", ".au", ".snd", ".caf", ".w64")
RATES = (1_000, 1_000_000)  # Hz; a header that says anything else is broken
LOUDEST = 2.0**32  # floats may be on the scale of integers; the energy of far more than that is infinite
BLOCK = 2**18  # samples of all channels together that are decoded at once
FILTERS = 2**22  # weights of a resampler at most
UNKNOWN = 2**63 - 1  # samples, as libsndfile says it


def read_audio(path: Path, sample_rate: int) -> Float[Tensor, "samples"]:
    """A sound file of any rate and number of channels, as mono at `sample_rate`; joined files one after another."""
    content = read_bytes(path, "sound file")
    if not content:
        raise UserError(f"{path} is an empty file.")
    try:
        parts = [_decode(path, recording) for recording in recordings(content)]
    except CutShort:
        raise UserError(f"{path} is cut short: its header promises more sound than it holds.") from None
    except LibsndfileError as error:
        reason = error.error_string.removeprefix("Error :").strip().rstrip(".")
        raise UserError(f"{path} is not a sound file that can be read, or is broken: {reason}.") from None
    alike = [(rate, torch.cat([sound for _, sound in same])) for rate, same in groupby(parts, lambda part: part[0])]
    sound = torch.cat([resample(sound, rate, sample_rate) for rate, sound in alike])
    if len(sound) == 0:
        raise UserError(f"{path} has no samples.")
    low, high = sound.aminmax()
    if not (low >= -LOUDEST and high <= LOUDEST):  # any NaN is the least and the greatest
        raise UserError(f"{path} holds samples that are not numbers (NaN or infinite), or are beyond 2**32.")
    return sound


def resample(sound: Float[Tensor, "samples"], rate: int, wanted: int) -> Float[Tensor, "resampled"]:
    if rate == wanted or not len(sound):
        return sound
    # A rate such as 44,101 Hz would need a filter for each of its samples: the nearest simpler ratio will do.
    ratio = Fraction(rate, wanted)
    ratio = ratio.limit_denominator(min(1000, isqrt(FILTERS // ceil(ratio))))
    return _resampler(ratio.numerator, ratio.denominator)(sound)


@lru_cache(maxsize=16)
def _resampler(rate: int, wanted: int) -> Resample:
    """Keeps its filter, which costs as much to make as to apply."""
    return Resample(rate, wanted)


class _ToTheEnd(SoundFile):
    """Read from front to back: soundfile would seek after each block, which compressed formats do inexactly."""

    def seekable(self) -> bool:
        return False


def _decode(path: Path, recording: Recording) -> tuple[int, Float[Tensor, "samples"]]:
    """The rate of a recording, and the mean of its channels."""
    with _ToTheEnd(BytesIO(recording.content)) as file:
        rate, stated = file.samplerate, recording.samples or file.frames
        if not RATES[0] <= rate <= RATES[1]:
            raise UserError(f"{path} says that it has {rate:,} samples a second: its header is broken.")
        sound = torch.cat([torch.zeros(0), *map(_mono, _blocks(file, stated))])
    if len(sound) < stated < UNKNOWN:
        raise UserError(
            f"{path} is cut short or broken: it promises {stated:,} samples, and {len(sound):,} can be read."
        )
    return rate, sound


def _blocks(file: SoundFile, stated: int) -> Iterator[Float[np.ndarray, "samples channels"]]:
    """All there is: the samples that are stated, and any beyond them."""
    read, size = 0, max(BLOCK // file.channels, 1)
    while read < file.frames:
        wanted = min(stated - read, size) if read < stated else size
        try:
            block = file.read(wanted, dtype="float32", always_2d=True)
        except LibsndfileError:
            if read >= stated:  # what stands behind the sound need not be any
                return
            raise
        yield block
        read += len(block)
        if len(block) < wanted:
            return


def _mono(block: Float[np.ndarray, "samples channels"]) -> Float[Tensor, "samples"]:
    channels = torch.from_numpy(block).unbind(dim=1)
    return sum(channels) / len(channels)  # faster than a mean over so few
