"""Made-up recordings, named as those of the Free Spoken Digit Dataset are."""

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import soundfile

SPEAKERS = ("ann", "bob", "cy")


def publish(folder: Path) -> Path:
    """Seven recordings of each digit by each of three speakers; the folder of the data set."""
    recordings = folder / "free-spoken-digit-dataset" / "recordings"
    recordings.mkdir(parents=True)
    draw = np.random.default_rng(0)
    for speaker in SPEAKERS:
        for digit in range(10):
            for number in range(7):
                sound = draw.normal(0, 0.1, int(draw.integers(1200, 3000)))
                soundfile.write(recordings / f"{digit}_{speaker}_{number}.wav", sound, 8000)
    return recordings.parent


def table_of(published: Path, rows: Sequence[tuple[str, ...]] = (), name: str = "list.csv") -> Path:
    """The same as a table. rows: further ones."""
    found = [
        (f"recordings/{file.name}", digit, "test" if int(number) < 5 else "train", speaker)
        for file in sorted((published / "recordings").iterdir())
        for digit, speaker, number in [file.stem.split("_")]
    ]
    with (published / name).open("w", newline="") as file:
        csv.writer(file).writerows([("path", "label", "split", "speaker"), *found, *rows])
    return published / name
