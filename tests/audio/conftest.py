from pathlib import Path

import numpy as np
import pytest
import soundfile

from audio.decoding import read_audio


@pytest.fixture
def clips(tmp_path) -> Path:
    """Two classes of short tones of different lengths that differ in pitch: folder/high and folder/low."""
    generator = np.random.default_rng(0)
    for label, pitch in (("high", 2500), ("low", 300)):
        folder = tmp_path / "folder" / label
        folder.mkdir(parents=True)
        for number in range(10):
            time = np.arange(int(generator.uniform(0.2, 0.4) * 16_000)) / 16_000
            tone = 0.5 * np.sin(2 * np.pi * pitch * generator.uniform(0.8, 1.2) * time)
            soundfile.write(folder / f"{number}.wav", tone + generator.normal(0, 0.01, len(time)), 16_000)
    return tmp_path / "folder"


@pytest.fixture
def decoded(tmp_path):
    """Decodes the content of an audio file."""

    def decode(content: bytes, rate: int = 16_000, name: str = "a.wav") -> np.ndarray:
        (tmp_path / name).write_bytes(content)
        return read_audio(tmp_path / name, rate).numpy()

    return decode
