"""How many tokens the clips of audio files are, from the lengths that the headers state: nothing is decoded."""

from collections.abc import Sequence
from fractions import Fraction
from io import BytesIO
from math import ceil
from typing import Any

import soundfile
from soundfile import LibsndfileError

from core.files import File, Packed

from .clips import AudioFormat
from .decoding import UNKNOWN, read_audio

STATED = (".wav", ".flac", ".aif", ".aiff", ".aifc", ".au", ".snd", ".caf")  # other formats would be read to their end


def file_token_counts(paths: Sequence[File], form: AudioFormat, size: int | None) -> list[int] | None:
    """Tokens of each file; None if the headers of some formats do not state it. size: the samples that longer clips are
    cut to.

    A header may be wrong, so that these numbers serve to fill batches, and no computation depends on them.
    """
    if any(not isinstance(path, Packed) and path.suffix.lower() not in STATED for path in paths):
        return None
    lengths = [stated_samples(path, form.sample_rate) for path in paths]
    counts = {length: form.count_tokens(length if size is None else min(length, size)) for length in set(lengths)}
    return [counts[length] for length in lengths]


def stated_samples(path: File, sample_rate: int) -> int:
    """Samples of a file once it is resampled."""
    try:
        info = stated(path)
    except LibsndfileError:  # it may have tags that libsndfile does not know; a broken file is an error here
        return len(read_audio(path, sample_rate))
    if info.frames >= UNKNOWN or info.samplerate < 1:
        return len(read_audio(path, sample_rate))
    return ceil(info.frames * Fraction(sample_rate, info.samplerate))


def stated(path: File) -> Any:
    """What the header of a file states. Raises LibsndfileError."""
    return soundfile.info(BytesIO(path.read_bytes()) if isinstance(path, Packed) else path)
