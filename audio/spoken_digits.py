"""The Free Spoken Digit Dataset, with its official test recordings or tested on a speaker who is held out."""

import re
from operator import attrgetter
from pathlib import Path
from typing import Literal, NamedTuple

from core import UserError
from core.config import configclass
from core.data import DataSplits, Sample, make_splits
from core.data.dataset import Name, ValidationFraction
from core.data.folders import find_files
from core.data.manifest import listed_file, manifest_rows

from .datasets import Words

DIGITS = tuple("0123456789")
RECORDING = re.compile(r"(\d)_([^_]+)_(\d+)\.wav")  # digit, speaker, number
TESTED = 5  # recordings of each digit and speaker, the first ones


class Recording(NamedTuple):
    path: Path
    digit: int
    speaker: str
    tested: bool
    """Whether it is in the official test set."""


@configclass
class SpokenDigits(ValidationFraction, Words):
    """The Free Spoken Digit Dataset (Jakobovski et al. 2018): its folder as published, whose recordings 0 to 4 of each
    digit and speaker are the test set, or a table with the columns path, label, split and speaker."""

    name: Name[Literal["spoken-digits"]] = "spoken-digits"
    path: Path = Path("data") / "free-spoken-digit-dataset"
    """The folder of the data set, or a CSV or JSON Lines file."""
    speaker: str = ""
    """Test on all recordings of this speaker, and train on those of the others alone."""

    def samples(self) -> DataSplits[list[Sample]]:
        recordings = read_recordings(self.path)
        train, test, note = split_recordings(self.path, recordings, self.speaker)
        data = make_splits(
            [Sample(recording.path, recording.digit) for recording in train],
            test=[Sample(recording.path, recording.digit) for recording in test],
            labels=DIGITS,
            classes=attrgetter("label"),
            validation_fraction=self.validation_fraction,
        )
        return DataSplits(**data.parts(), labels=DIGITS, note=f"{note} {data.note}")


def split_recordings(
    path: Path, recordings: list[Recording], speaker: str
) -> tuple[list[Recording], list[Recording], str]:
    """Those to train on, those to test on, and a sentence that says which. speaker: who is held out; empty for the
    official test set. path: of the data, for messages."""
    speakers = sorted({recording.speaker for recording in recordings})
    if speaker and speaker not in speakers:
        raise UserError(f"{path} has no speaker {speaker!r} (--data.speaker): choose one of {', '.join(speakers)}.")
    if speaker:
        tested = [recording.speaker == speaker for recording in recordings]
        note = f"All recordings of {speaker} are the test split, and those of the other speakers are trained on."
    else:
        tested = [recording.tested for recording in recordings]
        note = "The test split is the official one."
    train, test = (
        [each for each, is_tested in zip(recordings, tested, strict=True) if is_tested == wanted]
        for wanted in (False, True)
    )
    if missing := sorted(set(range(len(DIGITS))) - {recording.digit for recording in train}):
        raise UserError(f"{path} has no recording of the digit {missing[0]} to train on: name the whole data set.")
    if not test:
        raise UserError(
            f"{path} has no recordings of the official test set (0 to 4): hold out a speaker by --data.speaker."
        )
    return train, test, note


def read_recordings(path: Path) -> list[Recording]:
    """All recordings of a folder or a table, in the order of their names or rows."""
    return _listed(path) if path.is_file() else _published(path)


def _published(folder: Path) -> list[Recording]:
    recordings = folder / "recordings" if (folder / "recordings").is_dir() else folder
    if not recordings.is_dir():
        raise UserError(
            f"There is no {folder}: fetch https://github.com/Jakobovski/free-spoken-digit-dataset and name it by "
            "--data.path."
        )
    found = []
    for file in find_files(recordings, (".wav",)):
        name = RECORDING.fullmatch(file.name)
        if name is None:
            raise UserError(f"{file} is not named as a recording of this data set (7_jackson_32.wav).")
        found.append(Recording(file, int(name[1]), name[2], int(name[3]) < TESTED))
    return found


def _listed(table: Path) -> list[Recording]:
    found = []
    for where, row in manifest_rows(table, required=("path", "label", "split", "speaker")).items():
        if row["label"] not in DIGITS:
            raise UserError(f"{where}: the label must be a digit, not {row['label']!r}.")
        if row["split"] not in ("train", "test"):
            raise UserError(f"{where}: the split must be train or test, not {row['split']!r}.")
        file = listed_file(table.parent, where, row["path"])
        found.append(Recording(file, int(row["label"]), row["speaker"], row["split"] == "test"))
    return found
