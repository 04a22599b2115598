"""Telephone keypad tones (ITU-T Q.23) in noise, made from a seed; and the classic way to tell them apart."""

from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.data import Dataset

SAMPLE_RATE = 8_000
KEYS = tuple("123A456B789C*0#D")
ROWS, COLUMNS = np.array([697.0, 770.0, 852.0, 941.0]), np.array([1209.0, 1336.0, 1477.0, 1633.0])  # Hz
TOLERANCE = 0.018  # of the frequencies (Q.23, 6)
TWIST = (-8.0, 4.0)  # dB of the column's tone over the row's that a receiver must bear (Q.24, annex A)

Noise = Literal["white", "pink", "babble"]
NOISES: tuple[Noise, ...] = get_args(Noise)
LEVELS = range(-10, 21, 5)  # dB of the tones over the noise


class Clip(NamedTuple):
    waveform: Float[np.ndarray, "samples"]
    key: int
    noise: Noise
    level: float


class TrainClips(Dataset):
    """Fresh clips without end, drawn from the global random state; `size` is how many an epoch is said to have."""

    def __init__(self, size: int = 10_000):
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> tuple[Float[Tensor, "samples"], int]:
        generator = np.random.default_rng(np.random.randint(2**31))
        level = generator.uniform(LEVELS[0] - 2, LEVELS[-1])
        clip = make_clip(generator, int(generator.integers(len(KEYS))), str(generator.choice(NOISES)), level)
        return torch.from_numpy(clip.waveform), clip.key


class TestClips(Dataset):
    """The same for every run: each key in each noise at each level, `repeats` times."""

    def __init__(self, repeats: int = 6):
        conditions = [
            (key, noise, level)
            for level in LEVELS
            for noise in NOISES
            for key in range(len(KEYS))
            for _ in range(repeats)
        ]
        self.clips = [
            make_clip(np.random.default_rng([2, number]), key, noise, float(level))
            for number, (key, noise, level) in enumerate(conditions)
        ]

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int) -> tuple[Float[Tensor, "samples"], int]:
        return torch.from_numpy(self.clips[index].waveform), self.clips[index].key


def make_clip(generator: np.random.Generator, key: int, noise: Noise, level: float) -> Clip:
    """A key pressed for 50 - 200 ms somewhere in 0.2 - 0.5 s of noise; the whole at -30 to -3 dB of full scale.

    level: dB of the two tones' power, while they last, over the noise's.
    """
    samples = 80 * int(generator.integers(20, 51))
    length = int(generator.uniform(0.05, 0.2) * SAMPLE_RATE)
    start = generator.integers(samples - length + 1)
    time = np.arange(length) / SAMPLE_RATE
    off = 1 + generator.uniform(-TOLERANCE, TOLERANCE, 2)
    phases = generator.uniform(0, 2 * np.pi, 2)
    low, high = (
        np.sin(2 * np.pi * frequency * time + phase)
        for frequency, phase in zip((ROWS[key // 4], COLUMNS[key % 4]) * off, phases, strict=True)
    )
    tones = low + 10 ** (generator.uniform(*TWIST) / 20) * high
    edge = np.minimum(time, time[::-1]) / 0.003  # a key has no click
    sound = make_noise(generator, noise, samples)
    sound *= np.sqrt(np.square(tones).mean()) * 10 ** (-level / 20) / np.sqrt(np.square(sound).mean())
    sound[start : start + length] += tones * edge.clip(max=1)
    sound *= 10 ** (generator.uniform(-30, -3) / 20) / np.abs(sound).max()
    return Clip(sound.astype(np.float32), key, noise, level)


def make_noise(generator: np.random.Generator, noise: Noise, samples: int) -> Float[np.ndarray, "samples"]:
    """white; pink (power falls with the frequency); or babble: six voices speaking at once."""
    if noise == "white":
        return generator.standard_normal(samples)
    if noise == "pink":
        spectrum = np.fft.rfft(generator.standard_normal(samples))
        return np.fft.irfft(spectrum / np.sqrt(np.arange(len(spectrum)).clip(min=1)), samples)
    time = np.arange(samples, dtype=np.float32) / SAMPLE_RATE  # single precision is four times as fast
    spans = ((90, 250), (0.02, 0.1), (2, 6), (0, 2 * np.pi), (0, 2 * np.pi))
    pitch, drift, rate, turn, beat = (generator.uniform(*span, (6, 1)).astype(np.float32) for span in spans)
    phase = 2 * np.pi * pitch * time + drift * pitch / rate * np.sin(2 * np.pi * rate * time + turn)
    voices = np.exp(8 * (np.cos(phase) - 1))  # a pulse per period: harmonics
    voices *= np.sin(np.pi * rate * time + beat) ** 2  # a syllable per beat
    frequency = np.fft.rfftfreq(samples, 1 / SAMPLE_RATE)
    formants = generator.uniform([[300], [900], [2300]], [[800], [2200], [3300]], (6, 3, 1))
    gains = np.array([[1.0], [0.5], [0.25]])
    mouth = (gains * np.exp(-(((frequency - formants) / 150) ** 2))).sum(axis=1) + 0.02
    return np.fft.irfft((np.fft.rfft(voices) * mouth).sum(axis=0), samples)


# --- The baseline ---------------------------------------------------------------------------------------------------

WINDOWS = (128, 160, 205, 256, 320, 400)  # samples; 205 is the usual one at 8 kHz


def goertzel(waveform: Float[np.ndarray, "samples"], window: int) -> int:
    """The key whose two tones have the most energy together in any `window` samples of the clip.

    The energies are those of Goertzel's recursion (1958), at every position at once as differences of running sums.
    """
    time = np.arange(len(waveform)) / SAMPLE_RATE
    turns = np.exp(-2j * np.pi * np.concatenate([ROWS, COLUMNS])[:, None] * time)
    sums = np.pad(np.cumsum(waveform * turns, axis=1), ((0, 0), (1, 0)))
    window = min(window, len(waveform))
    rows, columns = (np.abs(sums[:, window:] - sums[:, :-window]) ** 2).reshape(2, 4, -1)
    where = (rows.max(axis=0) + columns.max(axis=0)).argmax()
    return int(4 * rows[:, where].argmax() + columns[:, where].argmax())


def goertzel_predictions(test: Sequence[Clip]) -> Int[Tensor, "n"]:
    """Goertzel's keys for test clips, by the window that is best on 400 other clips."""
    generator = np.random.default_rng(1)
    tuning = [
        make_clip(generator, number % len(KEYS), NOISES[number % 3], float(generator.uniform(LEVELS[0], LEVELS[-1])))
        for number in range(400)
    ]
    window = max(WINDOWS, key=lambda size: sum(goertzel(clip.waveform, size) == clip.key for clip in tuning))
    return torch.tensor([goertzel(clip.waveform, window) for clip in test])
