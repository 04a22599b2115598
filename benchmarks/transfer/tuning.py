"""What a start is worth where labels are few: tuned in whole, by LoRA or with its head alone, beside random weights."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .cifar10 import CROPS, MAE, MODEL, Cifar10, few_images
from .commands import Commands, Options, table
from .real_data import Rows, few_and_as_many, rows_of, write_rows
from .spoken_digits import LISTED, recordings
from .sst2 import PUBLISHED

SCRATCH = "random weights"
WAYS: Mapping[str, Options] = {
    SCRATCH: {"tune": "full"},
    "full": {"tune": "full"},
    "LoRA": {"tune": "lora", "lora.rank": 16},
    "head alone": {"tune": "head"},
}
RATES: Mapping[str, Sequence[float]] = {
    SCRATCH: (5e-4, 1e-3, 2e-3),
    "full": (2e-4, 5e-4, 1e-3),
    "LoRA": (1e-3, 3e-3, 1e-2),
    "head alone": (3e-3, 1e-2, 3e-2),
}
CLIPS = {  # as audio.train spoken-digits has them
    "data.augment.speed": 0.2,
    "data.augment.equalise": 10.0,
    "data.augment.noise": 10.0,
    "data.augment.shift": 0.0,
    "data.augment.gain": 0.0,
}
SPECTROGRAMS = {
    "model.sample-rate": 8000,
    "model.n-mels": 40,
    "model.max-frames": 240,
    "model.patch-size": (40, 4),
    "model.stride": (40, 4),
    "model.stem": (32, 64, 64),
    "model.no-class-token": True,
    "model.registers": 0,
    "model.pool": "mean",
    "model.features.f-min": 100.0,
    "model.features.floor": 40.0,
    "model.features.centre": True,
    "model.features.mean": 0.0,
    "model.features.std": 1.5,
    "model.dim": 96,
    "model.depth": 3,
    "model.heads": 4,
}


@dataclass(frozen=True)
class Start:
    """A model that a command trains on data without labels, or on other labels."""

    command: str
    options: Callable[[Path], Options]
    """Of the folder of the data."""


@dataclass(frozen=True)
class Tuning:
    task: str
    start: Start | str
    """A string names published weights."""
    few: Callable[[Path, int], Rows]
    """Of the data in a folder, rows to train on, as many to validate on, and those to test on, as a seed draws them."""
    command: str
    options: Options
    model: Options
    """What has random weights."""
    rates: Mapping[str, Sequence[float]] = field(default_factory=lambda: RATES)
    """Learning rates of each way, of which the best on the validation split is taken."""

    def run(self, commands: Commands, folder: Path, seeds: Sequence[int]) -> str:
        start, found, chosen = self.start, {}, []
        if isinstance(start, Start):
            commands.train("start", start.command, start.options(folder))
            start = commands.out / "start"
        for way, tuned in WAYS.items():
            own = {**tuned, **(self.model if way == SCRATCH else {"init": start})}

            def options(seed: int, _: int, own: Options = own) -> Options:
                rows = write_rows(commands.out / f"few-{seed}.csv", self.few(folder, seed))
                evaluation = {"train.eval-every": self.options["train.steps"], "train.accumulate": 1}
                return {"data.path": rows, **evaluation, **self.options, **own}

            figures, rate = commands.fine_tune(way.replace(" ", "-"), self.command, options, self.rates[way], seeds)
            found[way] = figures
            chosen.append(f"{way} {rate:g}")
        return "\n\n".join([table(tuple(WAYS), {self.task: found}), f"Learning rates: {', '.join(chosen)}."])


def labelled_images(folder: Path, seed: int, count: int = 10) -> Rows:
    return few_images(folder, count, seed)


def pretrained_on_images(folder: Path) -> Options:
    _, options = Cifar10().pretraining[MAE]
    steps = {"train.steps": 2000, "train.warmup": 200, "train.eval-every": 2000, "train.batch-size": 128}
    return {**MODEL, **options, **steps, "train.accumulate": 1, "data.path": folder, "data.validation-fraction": 0.02}


def unknown_speaker(rows: Rows) -> str:
    """The one that the start does not know: the last by name."""
    return max(row["speaker"] for row in rows)


def labelled_recordings(folder: Path, seed: int, count: int = 5) -> Rows:
    rows = recordings(folder)
    own = [row for row in rows if row["speaker"] == unknown_speaker(rows)]
    few = few_and_as_many(own, count, seed)
    taken = {row["path"] for row in few}
    return [*few, *({**row, "split": "test"} for row in own if row["path"] not in taken)]


def trained_on_other_speakers(folder: Path) -> Options:
    return {"data.path": folder / LISTED, "data.speaker": unknown_speaker(recordings(folder))}


def labelled_sentences(folder: Path, seed: int, count: int = 100) -> Rows:
    rows = rows_of(folder / "sst2.csv")
    few = few_and_as_many([row for row in rows if row["split"] == "train"], count, seed)
    return [*few, *(row for row in rows if row["split"] == "test")]


TUNING = {
    "cifar10": Tuning(
        task="CIFAR-10, 10 labels a class",
        start=Start("vision.train folder", pretrained_on_images),
        few=labelled_images,
        command="vision.train manifest",
        options={**CROPS, "train.steps": 150, "train.warmup": 15, "train.batch-size": 64},
        model=MODEL,
    ),
    "spoken-digits": Tuning(
        task="a fourth speaker's digits, 5 labels each",
        start=Start("audio.train spoken-digits", trained_on_other_speakers),
        few=labelled_recordings,
        command="audio.train manifest",
        options={
            **CLIPS,
            "model.freq-mask": 10,
            "model.time-mask": 12,
            "train.steps": 200,
            "train.warmup": 20,
            "train.batch-size": 32,
        },
        model=SPECTROGRAMS,
        rates={**RATES, SCRATCH: (1e-3, 2e-3, 4e-3)},
    ),
    "sst2": Tuning(
        task="SST-2, 100 labels a class",
        start=PUBLISHED,
        few=labelled_sentences,
        command="text.train manifest",
        options={"train.steps": 100, "train.warmup": 10, "train.batch-size": 32},
        model={"model.dim": 128, "model.depth": 2, "model.heads": 4},
        rates={
            **RATES,
            "full": (2e-5, 5e-5, 1e-4),
            "LoRA": (3e-4, 1e-3, 3e-3),
            "head alone": (1e-3, 3e-3, 1e-2),
        },
    ),
}
