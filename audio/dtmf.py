"""Telephone keypad tones (ITU-T Q.23) in noise, made from a seed; and a classical detector as a baseline."""

from collections.abc import Callable, Sequence
from functools import cached_property
from itertools import islice
from typing import Literal, NamedTuple, get_args

import numpy as np
import torch
from jaxtyping import Complex, Float, Float32, Int
from torch import Tensor
from torch.utils.data import Dataset

from core import UserError

SAMPLE_RATE = 8_000
KEYS = tuple("123A456B789C*0#D")
ROWS, COLUMNS = np.array([697.0, 770.0, 852.0, 941.0]), np.array([1209.0, 1336.0, 1477.0, 1633.0])  # Hz
TOLERANCE = 0.018  # of the frequencies (Q.23, 6)
TWIST = (-8.0, 4.0)  # dB of the column's tone over the row's that a receiver must accept (Q.24, annex A)
CLIP_STEP, CLIP_STEPS = 80, (20, 51)  # samples; a clip's length is a multiple from 20 to 50: 0.2 - 0.5 s
PRESS = (0.05, 0.2)  # s
GAIN = (-30.0, -3.0)  # dB of a clip's peak over full scale

Noise = Literal["white", "pink", "babble"]
NOISES: tuple[Noise, ...] = get_args(Noise)
LEVELS = range(-10, 21, 5)  # dB of the tones over the noise


class Clip(NamedTuple):
    waveform: Float[np.ndarray, "samples"]
    key: int
    noise: Noise
    level: float


class TrainClips(Dataset):
    """New clips at every access. size: of an epoch. levels: range of the tones over the noise, in dB.

    They are made as by `make_clip`, but a batch at a time, in single precision, and with noise that was recorded
    before: random stretches of several recordings are added. In practice no two clips share their noise.
    """

    SOURCES = {"white": 2, "pink": 2, "babble": 6}  # recordings that are added; each of babble is one voice
    RECORDINGS = 128  # of each noise, a second each
    draws = 8 + 2 * 2 + 2 * 6

    def __init__(self, size: int = 10_000, levels: tuple[float | int, float | int] = (LEVELS[0] - 2, LEVELS[-1])):
        self.size, self.levels = size, levels
        self.recordings = [
            record(np.random.default_rng([3, number]), noise, self.RECORDINGS) for number, noise in enumerate(NOISES)
        ]

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> tuple[Float[Tensor, "samples"], int]:
        return self.make([index], np.random.random((1, self.draws)))[0]

    def make(
        self, indices: list[int], draws: Float[np.ndarray, "n draws"]
    ) -> list[tuple[Float[Tensor, "samples"], int]]:
        key, noise, samples, length, start, twist, level, gain = draws[:, :8].T
        off, phases, source, place = np.split(draws[:, 8:], (2, 4, 10), axis=1)
        key, noise = (len(KEYS) * key).astype(int), (len(NOISES) * noise).astype(int)
        samples = CLIP_STEP * between(*CLIP_STEPS, samples).astype(int)
        length = (between(*PRESS, length) * SAMPLE_RATE).astype(int)
        press = Press(
            key,
            start=(start * (samples - length + 1)).astype(int),
            length=length,
            off=1 + between(-TOLERANCE, TOLERANCE, off),
            phases=2 * np.pi * phases,
            twist=between(*TWIST, twist),
            level=between(*self.levels, level),
            gain=between(*GAIN, gain),
        )
        source = (source * self.RECORDINGS).astype(int)
        place = (place * (SAMPLE_RATE - samples + 1)[:, None]).astype(int)
        background = np.zeros((len(draws), CLIP_STEP * (CLIP_STEPS[1] - 1)), dtype=np.float32)
        numbers = (values.tolist() for values in (samples, noise, source, place))
        for waveform, size, kind, *stretches in zip(background, *numbers, strict=True):
            for which, first in islice(zip(*stretches, strict=True), self.SOURCES[NOISES[kind]]):
                waveform[:size] += self.recordings[kind][which, first : first + size]
        waveforms = torch.from_numpy(press_keys(press, background, samples, round(PRESS[1] * SAMPLE_RATE)))
        return [(waveform[:n], k) for waveform, n, k in zip(waveforms, samples.tolist(), key.tolist(), strict=True)]


class FixedClips(Dataset):
    """Clips that are the same in every run."""

    clips: list[Clip]

    @cached_property
    def goertzel(self) -> Int[Tensor, "n"]:
        """The keys that the baseline predicts."""
        return goertzel_predictions(self.clips)

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int) -> tuple[Float[Tensor, "samples"], int]:
        return torch.from_numpy(self.clips[index].waveform), self.clips[index].key


class FewClips(FixedClips):
    """A number of clips of each key, in all noises and levels.

    count: the tokens of a clip of so many samples; token_counts: those of each clip.
    """

    def __init__(self, per_class: int, count: Callable[[int], int] | None = None):
        if per_class < 1:
            raise UserError(f"--data.per-class must be at least 1, not {per_class}.")
        generator = np.random.default_rng(4)
        self.clips = [
            make_clip(generator, key, NOISES[number % len(NOISES)], float(generator.uniform(LEVELS[0] - 2, LEVELS[-1])))
            for key in range(len(KEYS))
            for number in range(per_class)
        ]
        self.token_counts = None if count is None else [count(len(clip.waveform)) for clip in self.clips]


class TestClips(FixedClips):
    """Each key in each noise at each level, `repeats` times; clips of another seed are other clips."""

    def __init__(self, repeats: int = 6, levels: Sequence[int] = LEVELS, seed: int = 2):
        conditions: list[tuple[int, Noise, int]] = [
            (key, noise, level)
            for level in levels
            for noise in NOISES
            for key in range(len(KEYS))
            for _ in range(repeats)
        ]
        self.clips = [
            make_clip(np.random.default_rng([seed, number]), key, noise, float(level))
            for number, (key, noise, level) in enumerate(conditions)
        ]


class Press(NamedTuple):
    """The pressed keys of several clips."""

    key: Int[np.ndarray, "n"]
    start: Int[np.ndarray, "n"]
    length: Int[np.ndarray, "n"]
    off: Float[np.ndarray, "n 2"]
    """The tones' frequencies over those of the standard."""
    phases: Float[np.ndarray, "n 2"]
    twist: Float[np.ndarray, "n"]
    level: Float[np.ndarray, "n"]
    """Power of the two tones, while they last, over that of the noise, in dB."""
    gain: Float[np.ndarray, "n"]
    """Peak of the whole clip over full scale, in dB."""


def make_clip(generator: np.random.Generator, key: int, noise: Noise, level: float) -> Clip:
    """A key pressed for 50 - 200 ms somewhere in 0.2 - 0.5 s of noise; the whole at -30 to -3 dB of full scale.

    level: power of the two tones, while they last, over that of the noise, in dB.
    """
    samples = CLIP_STEP * int(generator.integers(*CLIP_STEPS))
    length = int(generator.uniform(*PRESS) * SAMPLE_RATE)
    start = generator.integers(samples - length + 1)
    off = 1 + generator.uniform(-TOLERANCE, TOLERANCE, 2)
    phases = generator.uniform(0, 2 * np.pi, 2)
    twist = generator.uniform(*TWIST)
    waveform = make_noise(generator, noise, samples)
    drawn = key, start, length, off, phases, twist, level, generator.uniform(*GAIN)
    press = Press(*(np.array([value]) for value in drawn))
    return Clip(press_keys(press, waveform[None], np.array([samples]), length)[0], key, noise, level)


def press_keys(
    press: Press, noise: Float[np.ndarray, "n samples"], samples: Int[np.ndarray, "n"], longest: int
) -> Float32[np.ndarray, "n samples"]:
    """Clips of the keys in the noise, in the precision of the noise, which is 0 after the end of each clip.

    longest: samples, at least those of each press. Sums run over it, so it must not depend on the batch.
    """
    column = lambda values: values.astype(noise.dtype)[:, None]
    at, last = np.arange(longest, dtype=noise.dtype), column(press.length - 1.0)
    standard = np.stack([ROWS[press.key // 4], COLUMNS[press.key % 4]], axis=1)
    rates = 2 * np.pi * (standard * press.off)
    low, high = (
        np.sin(column(rate) * (at / SAMPLE_RATE) + column(phase))
        for rate, phase in zip(rates.T, press.phases.T, strict=True)
    )
    low += column(10 ** (press.twist / 20)) * high
    tones = low * (at <= last)
    power = np.einsum("nt, nt -> n", tones, tones) / press.length
    tones *= (np.minimum(at, last - at) / SAMPLE_RATE / 0.003).clip(0, 1)  # without a click
    loudness = np.sqrt(np.einsum("nt, nt -> n", noise, noise) / samples)
    waveforms = noise * column(np.sqrt(power) * 10 ** (-press.level / 20) / loudness)
    for waveform, tone, start, length in zip(waveforms, tones, press.start, press.length, strict=True):
        waveform[start : start + length] += tone[:length]
    waveforms *= column(10 ** (press.gain / 20) / np.maximum(waveforms.max(axis=1), -waveforms.min(axis=1)))
    return waveforms.astype(np.float32, copy=False)


def make_noise(generator: np.random.Generator, noise: Noise, samples: int) -> Float[np.ndarray, "samples"]:
    """white; pink (power falls with the frequency); or babble: six voices at once."""
    if noise == "white":
        return generator.standard_normal(samples)
    if noise == "pink":
        return pink(generator, samples)
    return np.fft.irfft(voices(generator, 6, samples).sum(axis=0), samples)


def pink(generator: np.random.Generator, samples: int, flat: int = 1) -> Float[np.ndarray, "samples"]:
    """flat: the power does not rise below this number of cycles in all samples."""
    spectrum = np.fft.rfft(generator.standard_normal(samples))
    return np.fft.irfft(spectrum / np.sqrt(np.arange(len(spectrum)).clip(min=flat)), samples)


def voices(generator: np.random.Generator, count: int, samples: int) -> Complex[np.ndarray, "count bins"]:
    """Spectra of speaking voices."""
    time = np.arange(samples, dtype=np.float32) / SAMPLE_RATE  # single precision is four times as fast
    spans = ((90, 250), (0.02, 0.1), (2, 6), (0, 2 * np.pi), (0, 2 * np.pi))
    pitch, drift, rate, turn, beat = (generator.uniform(*span, (count, 1)).astype(np.float32) for span in spans)
    phase = 2 * np.pi * pitch * time + drift * pitch / rate * np.sin(2 * np.pi * rate * time + turn)
    pulses = np.exp(8 * (np.cos(phase) - 1))  # one per period: harmonics
    pulses *= np.sin(np.pi * rate * time + beat) ** 2  # a syllable per beat
    frequency = np.fft.rfftfreq(samples, 1 / SAMPLE_RATE)
    formants = generator.uniform([[300], [900], [2300]], [[800], [2200], [3300]], (count, 3, 1))
    gains = np.array([[1.0], [0.5], [0.25]])
    mouth = (gains * np.exp(-(((frequency - formants) / 150) ** 2))).sum(axis=1) + 0.02
    return np.fft.rfft(pulses) * mouth


def record(generator: np.random.Generator, noise: Noise, count: int) -> Float32[np.ndarray, "count samples"]:
    """Recordings of a noise, one second each."""
    if noise == "white":
        return generator.standard_normal((count, SAMPLE_RATE), dtype=np.float32)
    if noise == "pink":  # its power rises down to the lowest frequency of a clip of mean length, 1/3 s
        return np.stack([pink(generator, SAMPLE_RATE, flat=3).astype(np.float32) for _ in range(count)])
    spectra = (voices(generator, 1, SAMPLE_RATE)[0] for _ in range(count))  # one by one, because they need much memory
    return np.stack([np.fft.irfft(spectrum, SAMPLE_RATE).astype(np.float32) for spectrum in spectra])


def between(low: float | int, high: float | int, fraction: Float[np.ndarray, "*n"]) -> Float[np.ndarray, "*n"]:
    return low + (high - low) * fraction


# --- The baseline ---------------------------------------------------------------------------------------------------

WINDOWS = (128, 160, 205, 256, 320, 400)  # samples; 205 is the usual one at 8 kHz


def goertzel(waveform: Float[np.ndarray, "samples"], windows: Sequence[int] = WINDOWS) -> list[int]:
    """For each length of a window, the key whose two tones have the most energy in any window of that length.

    The energies are those of Goertzel's recursion (1958), for all positions at once as differences of running sums.
    """
    time = np.arange(len(waveform)) / SAMPLE_RATE
    waves = np.exp(-2j * np.pi * np.concatenate([ROWS, COLUMNS])[:, None] * time)
    sums = np.pad(np.cumsum(waveform * waves, axis=1), ((0, 0), (1, 0)))
    keys = []
    for window in windows:
        window = min(window, len(waveform))
        rows, columns = (np.abs(sums[:, window:] - sums[:, :-window]) ** 2).reshape(2, 4, -1)
        where = (rows.max(axis=0) + columns.max(axis=0)).argmax()
        keys.append(int(4 * rows[:, where].argmax() + columns[:, where].argmax()))
    return keys


def goertzel_predictions(test: Sequence[Clip]) -> Int[Tensor, "n"]:
    """Keys predicted by Goertzel's method, with the window that is best on 400 other clips."""
    generator = np.random.default_rng(1)
    right = np.zeros(len(WINDOWS))
    for number in range(400):
        level = float(generator.uniform(LEVELS[0], LEVELS[-1]))
        clip = make_clip(generator, number % len(KEYS), NOISES[number % 3], level)
        right += np.equal(goertzel(clip.waveform), clip.key)
    best = WINDOWS[right.argmax()]
    return torch.tensor([goertzel(clip.waveform, [best])[0] for clip in test])
