"""Sound to learn from: named data sets, a directory per class, a manifest; and what each clip goes through."""

import random
import tarfile
import zlib
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import torch
from annotated_types import Interval
from jaxtyping import Float
from pydantic import Strict
from torch import Tensor
from torch.utils.data import Dataset
from torchaudio import functional as AF
from torchaudio.datasets import SPEECHCOMMANDS
from torchaudio.datasets import speechcommands as official

from core import Batch, UserError
from core.config import BetweenZeroAndOne, Count, configclass
from core.data import Sample, few_per_class, read_folder, read_manifest
from core.data.cache import DecodeCache, open_cache
from core.data.manifest import listed_file, manifest_rows
from core.files import check_file, first_line

from .augment import Augment
from .decoding import SUFFIXES, read_audio
from .dtmf import KEYS, SAMPLE_RATE, FewClips, TestClips, TrainClips
from .features import frame_samples
from .model import ASTConfig, check_length

LISTENED_TO = 100  # clips of a class, in search of one that is not silent
Seconds = Annotated[float, Strict(), Interval(gt=0, le=1e6)]


@configclass
class DataConfig:
    name: Literal["dtmf", "speechcommands", "esc50", "folder", "manifest"] = "dtmf"
    """Which data."""
    path: Path | None = None
    """The folder, the manifest, or where a named data set is kept (data/ by default)."""
    test_fraction: BetweenZeroAndOne = 0.2
    """Share of test clips where the data come without a split of their own."""
    fold: Count = 1
    """The fold of esc50 that is tested on, 1 to 5."""
    multilabel: bool = False
    """The manifest's labels are several, separated by semicolons or a list of JSON: a clip may be of many classes."""
    per_class: Count | None = None
    """Training clips of each class that are used; None for all."""
    seconds: Seconds | None = None
    """Of a longer clip, train on a random stretch of this length and test on the middle; None for whole clips."""
    cache: Path | None = None
    """Directory that keeps decoded files, so that each is decoded once; None for none."""
    augment: Augment = Augment()


class SoundData(NamedTuple):
    train: Dataset
    test: Dataset
    labels: tuple[str, ...]
    validation: Dataset | None = None
    note: str = ""
    """Where the validation and the test split come from."""


def read_data(config: DataConfig, model: ASTConfig) -> SoundData:
    """Training and test clips as (waveform at the model's rate, class number or "classes" of 0 and 1)."""
    length, _ = frame_samples(model.features, model.sample_rate)
    if config.seconds is not None and config.seconds * model.sample_rate < length:
        raise UserError(
            f"--data.seconds {config.seconds:g} is shorter than a frame (--model.features.frame-length), which takes "
            f"{length / model.sample_rate:g} s."
        )
    if config.multilabel and config.name != "manifest":
        raise UserError("--data.multilabel is for a manifest: use the experiment 'manifest'.")
    match config.name:
        case "dtmf":
            if model.sample_rate != SAMPLE_RATE:
                raise UserError(f"The dtmf clips are made at {SAMPLE_RATE} Hz: leave --model.sample-rate at that.")
            train = TrainClips() if config.per_class is None else FewClips(config.per_class)
            return SoundData(train, TestClips(), KEYS)
        case "speechcommands":
            found = _speechcommands(config.path or Path("data"))
        case "esc50":
            found = _esc50(config.path or Path("data") / "ESC-50-master", config.fold)
        case "folder" | "manifest":
            if config.path is None:
                raise UserError(f"The {config.name} data need --data.path.")
            if config.name == "folder":
                found = read_folder(config.path, SUFFIXES, config.test_fraction)
            else:
                found = read_manifest(config.path, config.test_fraction, config.multilabel)
    train, test, labels = found
    if config.multilabel and config.per_class is not None:
        raise UserError("--data.per-class is for clips of one class each: leave it out.")
    train = few_per_class(train, config.per_class)
    cache = open_cache(config.cache, config.path)
    read = partial(read_cached, sample_rate=model.sample_rate, cache=cache)
    check_sound(train, labels, read)
    change = train_transform(config, model.sample_rate), eval_transform(config, model.sample_rate)
    return SoundData(
        *(
            Clips(part, read, transform, model, len(labels))
            for part, transform in zip((train, test), change, strict=True)
        ),
        labels,
    )


class Clips(Dataset):
    """Samples of (path, class number or numbers), decoded and transformed when asked for."""

    def __init__(self, samples: list, read: Callable, transform: Callable, model: ASTConfig, classes: int):
        self.samples, self.read, self.transform, self.model, self.classes = samples, read, transform, model, classes

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Float[Tensor, "samples"], int | Float[Tensor, "classes"]]:
        path, label = self.samples[index]
        target = label if isinstance(label, int) else torch.zeros(self.classes).index_fill(0, torch.tensor(label), 1.0)
        sound = self.transform(self.read(path))
        check_length(f"{path}: a clip", len(sound), self.model)
        return sound, target


def read_cached(path: Path, sample_rate: int, cache: DecodeCache | None) -> Float[Tensor, "samples"]:
    if cache is None:
        return read_audio(path, sample_rate)
    return torch.from_numpy(cache.get(path, f"mono, {sample_rate} Hz", lambda: read_audio(path, sample_rate).numpy()))


def collate(samples: list[tuple[Float[Tensor, "_"], int | Float[Tensor, "classes"]]]) -> Batch:
    """Waveforms padded to the longest, and their lengths."""
    waveforms, targets = zip(*samples, strict=True)
    lengths = torch.tensor([len(waveform) for waveform in waveforms])
    targets = torch.tensor(targets) if isinstance(targets[0], int) else torch.stack(targets)
    return Batch((torch.nn.utils.rnn.pad_sequence(waveforms, batch_first=True), lengths), targets)


def eval_transform(config: DataConfig, sample_rate: int) -> Callable[[Float[Tensor, "s"]], Float[Tensor, "t"]]:
    """The middle `seconds` of a clip."""
    size = _stretch(config, sample_rate)

    def transform(sound: Float[Tensor, "s"]) -> Float[Tensor, "t"]:
        if size is None or len(sound) <= size:
            return sound
        return sound[(len(sound) - size) // 2 :][:size]

    return transform


def train_transform(config: DataConfig, sample_rate: int) -> Callable[[Float[Tensor, "s"]], Float[Tensor, "t"]]:
    """A random stretch of a clip, changed at random; drawn from the global random state."""
    size, augment = _stretch(config, sample_rate), config.augment

    def transform(sound: Float[Tensor, "s"]) -> Float[Tensor, "t"]:
        if size is not None and len(sound) > size:
            sound = sound[random.randrange(len(sound) - size + 1) :][:size]
        if augment.shift:
            sound = sound.roll(round(random.uniform(-augment.shift, augment.shift) * len(sound)))
        if augment.noise is not None and sound.any():
            level = torch.tensor(augment.noise + random.uniform(0, 30))
            sound = AF.add_noise(sound, torch.randn_like(sound), level)
        if augment.gain:
            sound = AF.gain(sound, random.uniform(-augment.gain, augment.gain))
        return sound

    return transform


def _stretch(config: DataConfig, sample_rate: int) -> int | None:
    return None if config.seconds is None else max(round(config.seconds * sample_rate), 1)


def check_sound(train: Sequence, labels: Sequence[str], read: Callable[[Path], Float[Tensor, "samples"]]) -> None:
    """A class of nothing but silence cannot be learnt. Reads a file per class as a rule, and a hundred at most."""
    clips: list[list[Path]] = [[] for _ in labels]
    for path, label in train:
        for number in [label] if isinstance(label, int) else label:
            clips[number].append(path)
    for label, paths in zip(labels, clips, strict=True):
        if not paths:
            raise UserError(f"Class {label!r} has no training clips, so it can't be learnt.")
        some = paths[:: -(-len(paths) // LISTENED_TO)]
        if not any(read(path).any() for path in some):
            which = "Every training clip" if len(some) == len(paths) else f"Each of {len(some)} training clips"
            raise UserError(f"{which} of class {label!r} is silent, so it can't be learnt.")


def _speechcommands(root: Path) -> tuple[list, list, tuple[str, ...]]:
    """Google's Speech Commands, version 2: trained on all but the official validation and testing lists."""
    archive = root / official.FOLDER_IN_ARCHIVE
    folder = archive / official.URL
    again = f"fetch {official.URL}.tar.gz and unpack it into {folder}"
    try:
        root.mkdir(parents=True, exist_ok=True)
        if folder.is_dir():
            for name in ("validation_list.txt", "testing_list.txt"):
                check_file(folder / name)
        parts = [
            SPEECHCOMMANDS(root, download=not folder.is_dir(), subset=subset) for subset in ("training", "testing")
        ]
        metadata = [[part.get_metadata(number) for number in range(len(part))] for part in parts]
    # Of a list that is no text, or of an archive that is cut short or no archive, besides the files that are missing.
    except (OSError, RuntimeError, ValueError, EOFError, tarfile.TarError, zlib.error) as error:
        raise UserError(
            f"speechcommands could not be read or downloaded into {root} ({first_line(error)}): {again}."
        ) from None
    labels = tuple(sorted({row[2] for row in metadata[0]}))
    if unlearnt := sorted({row[2] for row in metadata[1]} - set(labels)):
        raise UserError(f"{folder}: label {unlearnt[0]!r} is only in the testing list, so it can't be learnt.")
    if min(map(len, metadata)) == 0 or len(labels) < 2:
        raise UserError(f"{folder} lacks clips to train or to test on: {again}.")
    train, test = ([Sample(archive / row[0], labels.index(row[2])) for row in part] for part in metadata)
    if missing := next((path for path, _ in test if not path.is_file()), None):
        raise UserError(f"{folder}: the testing list names {missing}, which is not there: {again}.")
    return train, test, labels


def _esc50(root: Path, fold: int) -> tuple[list, list, tuple[str, ...]]:
    """ESC-50 (Piczak 2015) as published: meta/esc50.csv and audio/; tested on one of its folds."""
    table = root / "meta" / "esc50.csv"
    if not table.is_file():
        raise UserError(
            f"There is no {table}: fetch https://github.com/karolpiczak/ESC-50 and name its directory by --data.path."
        )
    rows = manifest_rows(table, required=("filename", "fold", "category"))
    labels = tuple(sorted({row["category"] for row in rows.values()}))
    train, test = [], []
    for where, row in rows.items():
        file = listed_file(root / "audio", where, row["filename"])
        (test if row["fold"] == str(fold) else train).append(Sample(file, labels.index(row["category"])))
    if not train or not test:
        folds = ", ".join(sorted({row["fold"] for row in rows.values()}))
        raise UserError(f"--data.fold {fold} leaves nothing to train or to test on: the folds are {folds}.")
    if unlearnt := {label for _, label in test} - {label for _, label in train}:
        raise UserError(f"{table}: category {labels[min(unlearnt)]!r} is only in fold {fold}, so it can't be learnt.")
    return train, test, labels


def is_in_memory(config: DataConfig) -> bool:
    return config.name == "dtmf"
