"""Audio data sets: named ones, a directory per class, a manifest."""

import os
import tarfile
import zlib
from functools import partial
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import torch
from annotated_types import Interval
from pydantic import Strict
from torchaudio.datasets import SPEECHCOMMANDS
from torchaudio.datasets import speechcommands as official

from core import UserError
from core.config import Count, configclass
from core.data import DataSplits, ListedFiles, Sample, ShardFiles, UnlabelledFiles, few_per_class, read_folder
from core.data.cache import DecodeCache, open_cache
from core.data.dataset import FileDataset, Folds, Name, NamedSamples
from core.data.manifest import listed_file, manifest_rows
from core.data.shards import ShardSamples, shards_of
from core.files import check_file, first_line

from .augment import Augment, Mixing, train_transform
from .clips import AudioFormat, check_length
from .counting import file_token_counts, stated_samples
from .decoding import SUFFIXES
from .dtmf import KEYS, SAMPLE_RATE, FewClips, TestClips, TrainClips
from .samples import Clips, check_audible, eval_transform, read_clip
from .voices import Voices, speak_names

VALIDATION_SEED = 5
Seconds = Annotated[float, Strict(), Interval(gt=0, le=1e6)]


@configclass
class DTMF:
    """The 16 telephone keypad tones in noise, made on the fly."""

    name: Name[Literal["dtmf"]] = "dtmf"
    per_class: Count | None = None
    """Training clips of each class that are used; None for new ones without end."""
    repeats: Count = 6
    """Test clips of each key in each noise at each level; for validation half as many."""
    augment: Mixing = Mixing()
    in_memory: ClassVar[bool] = True

    def read(self, form: AudioFormat) -> DataSplits:
        """Clips as (waveform at the format's rate, class number)."""
        if form.sample_rate != SAMPLE_RATE:
            raise UserError(f"The dtmf clips are made at {SAMPLE_RATE} Hz: leave --model.sample-rate at that.")
        count = None if self.augment.mixup else form.count_tokens  # a mixed clip is as long as the longer of two
        return DataSplits(
            train=TrainClips() if self.per_class is None else FewClips(self.per_class, count),
            validation=TestClips(repeats=max(self.repeats // 2, 1), seed=VALIDATION_SEED),
            test=TestClips(repeats=self.repeats),
            labels=KEYS,
            note="The clips of each split are made on the fly, from random numbers of their own.",
        )

    def baseline(self, data: DataSplits) -> tuple[str, float]:
        keys = torch.tensor([clip.key for clip in data.test.clips])
        return "Goertzel", (data.test.goertzel == keys).float().mean().item()

    def named_samples(self, data: DataSplits) -> NamedSamples:
        return {}


@configclass
class AudioFiles(FileDataset):
    """What data sets of audio files share. A new one adds its own options and `samples`."""

    per_class: Count | None = None
    """Training clips of each class that are used; None for all."""
    seconds: Seconds | None = None
    """Of a longer clip, train on a random stretch of this length and test on the middle; None for whole clips."""
    augment: Augment = Augment()
    in_memory: ClassVar[bool] = False

    def samples(self) -> DataSplits[list[Sample]]:
        """Three lists of files and their labels, and the names of the classes."""
        raise NotImplementedError

    def read(self, form: AudioFormat) -> DataSplits:
        """Clips as (waveform at the format's rate, class number or "classes" of 0 and 1), in training augmented."""
        if self.seconds is not None and self.seconds * form.sample_rate < form.shortest:
            raise UserError(
                f"--data.seconds {self.seconds:g} is shorter than a frame (--model.features.frame-length), which takes "
                f"{form.shortest / form.sample_rate:g} s."
            )
        data = self.samples()
        train = few_per_class(data.train, self.per_class)
        in_shards = shards_of(train) is not None
        further, note = self.further_samples(data, form.sample_rate)
        read = partial(read_clip, form=form, cache=self.open_cache())
        if data.labels and not in_shards:  # of which many would have to be fetched
            check_audible(train, data.labels, read)
        if self.seconds is None:
            for path, _ in further:
                check_length(f"{path}: a clip", stated_samples(path, form.sample_rate), form)
        train = [*train, *further] if further else train
        size = None if self.seconds is None else max(round(self.seconds * form.sample_rate), 1)
        clips = partial(Clips, read=read, form=form, classes=len(data.labels))
        known = None if in_shards else partial(file_token_counts, form=form, size=size)
        count = None if self.augment.mixup or self.augment.speed else known
        return DataSplits(
            train=clips(train, transform=train_transform(size, self.augment, form.longest), count=count),
            validation=clips(data.validation, transform=eval_transform(size), count=known),
            test=clips(data.test, transform=eval_transform(size), count=known),
            labels=data.labels,
            note=f"{data.note} {note}".strip(),
        )

    def further_samples(self, data: DataSplits[list[Sample]], sample_rate: int) -> tuple[list[Sample], str]:
        """Training samples that are no files of the data set, and a sentence about them."""
        return [], ""

    def baseline(self, data: DataSplits) -> tuple[str, float] | None:
        """The name of a simpler method and its test accuracy."""
        return None


@configclass
class Words(AudioFiles):
    """What data sets share whose classes may be spoken words."""

    voices: Voices = Voices()

    def further_samples(self, data: DataSplits[list[Sample]], sample_rate: int) -> tuple[list[Sample], str]:
        if not self.voices.count:
            return [], ""
        if not data.labels or isinstance(data.train[0].label, tuple):
            raise UserError(
                "Synthetic voices say the names of classes, so each clip must have one class: leave "
                "--data.voices.count at 0."
            )
        clips = speak_names(tuple(data.labels), self.voices, sample_rate)
        count = self.voices.count
        return clips, f"{len(clips):,} more training clips are the names of the classes in {count:,} synthetic voices."


@configclass
class Folder(Folds, Words):
    """Audio files, one directory per class."""

    name: Name[Literal["folder"]] = "folder"

    def samples(self) -> DataSplits[list[Sample]]:
        return read_folder(self.given_path(), SUFFIXES, self)


@configclass
class Manifest(ListedFiles, Words):
    """Audio files, listed with their labels in a CSV or JSON Lines file."""

    name: Name[Literal["manifest"]] = "manifest"

    def samples(self) -> DataSplits[list[Sample]]:
        return self.listed(self.given_path())


@configclass
class Unlabelled(UnlabelledFiles, AudioFiles):
    """Audio files at or below a folder, or listed in a manifest, to learn from without classes."""

    name: Name[Literal["unlabelled"]] = "unlabelled"
    augment: Augment = Augment(gain=6.0, noise=10.0, shift=0.1)

    def samples(self) -> DataSplits[list[Sample]]:
        return self.unlabelled(SUFFIXES)


@configclass
class Shards(ShardFiles, AudioFiles):
    """Clips in shards, which `python -m core.experiments.shard` makes of a folder or a manifest."""

    name: Name[Literal["shards"]] = "shards"

    def samples(self) -> DataSplits[ShardSamples]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return self.read_files(SUFFIXES)


@configclass
class SpeechCommands(Words):
    """Google's Speech Commands, version 2 (Warden 2018), with its official validation and testing lists."""

    name: Name[Literal["speechcommands"]] = "speechcommands"
    path: Path = Path("data")
    """Where the data set is kept, and downloaded if it is not there."""

    def open_cache(self) -> DecodeCache | None:
        return open_cache(self.cache, self.path / official.FOLDER_IN_ARCHIVE)

    def samples(self) -> DataSplits[list[Sample]]:
        archive = self.path / official.FOLDER_IN_ARCHIVE
        folder = archive / official.URL
        remedy = f"fetch {official.URL}.tar.gz and unpack it into {folder}"
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            if folder.is_dir():
                for name in ("validation_list.txt", "testing_list.txt"):
                    check_file(folder / name)
            splits = {}
            for split, subset in {"train": "training", "validation": "validation", "test": "testing"}.items():
                part = SPEECHCOMMANDS(self.path, download=not folder.is_dir(), subset=subset)
                splits[split] = [part.get_metadata(number) for number in range(len(part))]
        # A list that is no text, an archive that is cut short or no archive, besides files that are missing.
        except (OSError, RuntimeError, ValueError, UserError, EOFError, tarfile.TarError, zlib.error) as error:
            raise UserError(
                f"speechcommands could not be read or downloaded into {self.path} ({first_line(error)}): {remedy}."
            ) from None
        labels = tuple(sorted({row[2] for row in splits["train"]}))
        for split, name in {"validation": "validation", "test": "testing"}.items():
            if unknown := sorted({row[2] for row in splits[split]} - set(labels)):
                raise UserError(f"{folder}: label {unknown[0]!r} is only in the {name} list, so it can't be learnt.")
        if min(map(len, splits.values())) == 0 or len(labels) < 2:
            raise UserError(f"{folder} lacks clips to train, to validate or to test on: {remedy}.")
        samples = {
            split: [Sample(archive / row[0], labels.index(row[2])) for row in rows] for split, rows in splits.items()
        }
        for split, name in {"validation": "validation", "test": "testing"}.items():
            if missing := next((path for path, _ in samples[split] if not os.path.isfile(str(path))), None):
                raise UserError(f"{folder}: the {name} list names {missing}, which is not there: {remedy}.")
        return DataSplits(**samples, labels=labels, note="The validation and the test split are the data's own.")


@configclass
class ESC50(AudioFiles):
    """ESC-50 (Piczak 2015) as published: meta/esc50.csv and audio/."""

    name: Name[Literal["esc50"]] = "esc50"
    path: Path = Path("data") / "ESC-50-master"
    """The directory of the data set."""
    fold: Count = 1
    """The fold that is tested on, 1 to 5; the next one (after 5 the first) is for validation."""

    def samples(self) -> DataSplits[list[Sample]]:
        table = self.path / "meta" / "esc50.csv"
        if not table.is_file():
            raise UserError(
                f"There is no {table}: fetch https://github.com/karolpiczak/ESC-50 and name its directory by "
                "--data.path."
            )
        rows = manifest_rows(table, required=("filename", "fold", "category"))
        labels = tuple(sorted({row["category"] for row in rows.values()}))
        folds = sorted({row["fold"] for row in rows.values()})
        if str(self.fold) not in folds or len(folds) < 3:
            raise UserError(
                f"{table} has no fold {self.fold} (--data.fold), or not three folds: they are {', '.join(folds)}."
            )
        validation = folds[(folds.index(str(self.fold)) + 1) % len(folds)]
        splits = {"train": [], "validation": [], "test": []}
        for where, row in rows.items():
            split = {str(self.fold): "test", validation: "validation"}.get(row["fold"], "train")
            file = listed_file(self.path / "audio", where, row["filename"])
            splits[split].append(Sample(file, labels.index(row["category"])))
        if unknown := set(range(len(labels))) - {label for _, label in splits["train"]}:
            raise UserError(
                f"{table}: category {labels[min(unknown)]!r} is only in fold {self.fold} or {validation}, so it can't "
                "be learnt."
            )
        note = f"Fold {self.fold} is the test split and fold {validation} the validation split."
        return DataSplits(**splits, labels=labels, note=note)
