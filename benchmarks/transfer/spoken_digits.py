"""Spoken digits: three speakers without labels and a few labels of theirs, tested on a fourth speaker."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from audio.decoding import read_audio
from audio.features import FeatureConfig, Filterbank

from .commands import Commands, Options, probed, table
from .real_data import Rows, few_of_each, rows_of, write_rows

RATE, BINS = 8000, 64
LISTED = "spoken-digits.csv"
MODEL = {
    "model.sample-rate": RATE,
    "model.n-mels": BINS,
    "model.max-frames": 240,  # the longest recording has 129
    "model.patch-size": (16, 4),
    "model.stride": (16, 4),
    "model.features.mean": -4.9,
    "model.features.std": 3.9,
    "model.dim": 128,
    "model.depth": 6,
    "model.heads": 4,
    "model.pool": "mean",
    "model.registers": 0,
}
NO_BANDS = {"model.freq-mask": 0, "model.time-mask": 0}
LATENT, SCRATCH, BASELINE = "masked latent prediction", "random weights", "logistic regression"
STRENGTHS = (0.01, 0.1, 1.0, 10.0)  # of scikit-learn's C, of which the validation split decides


@dataclass(frozen=True)
class SpokenDigits:
    model: Options = field(default_factory=lambda: MODEL)
    command: str = "audio.train adapt"
    pretraining: Options = field(
        default_factory=lambda: {
            "train.steps": 800,
            "train.batch-size": 64,
            "train.warmup": 80,
            "train.optimizer": "muon",
            "train.lr": 5e-3,
            "latent.ema": 0.99,  # a teacher that follows within so few steps
            "latent.ema-end": 0.999,
        }
    )
    few: int = 10
    """Labels of each digit, of all speakers together."""
    fine_tuning: Options = field(
        default_factory=lambda: {"train.steps": 400, "train.batch-size": 32, "train.warmup": 40, "train.accumulate": 1}
    )
    rates: Sequence[float] = (5e-4, 1e-3, 2e-3)
    """Learning rates of fine-tuning, of which the best on the validation split is taken for each start."""
    held_out: str = ""
    """The speaker to test on; by default the last by name."""

    def run(self, commands: Commands, folder: Path, seeds: Sequence[int]) -> str:
        rows = recordings(folder)
        speakers = sorted({row["speaker"] for row in rows})
        tested = self.held_out or speakers[-1]
        known = [row for row in rows if row["speaker"] != tested]
        parts = {
            "train": [row for row in known if row["split"] == "train"],
            "validation": [{**row, "split": "validation"} for row in known if row["split"] == "test"],
            "test": [{**row, "split": "test"} for row in rows if row["speaker"] == tested],
        }
        kept = [{"path": row["path"], "split": row["split"]} for row in (*parts["train"], *parts["validation"])]
        column = f"{self.few} labels a digit, tested on {tested}"
        pretraining = {**self.model, **self.pretraining, "data.path": write_rows(commands.out / "unlabelled.csv", kept)}
        pretraining["train.eval-every"] = max(self.pretraining["train.steps"] // 4, 1)
        listed = [*parts["train"], *parts["validation"], *parts["test"]]
        pretraining["probe.path"] = write_rows(commands.out / "labelled.csv", listed)
        runs = [commands.train(f"latent-{seed}", self.command, {**pretraining, "train.seed": seed}) for seed in seeds]

        def labelled(seed: int) -> list[dict[str, str]]:
            return [*few_of_each(parts["train"], self.few, seed), *parts["validation"], *parts["test"]]

        def options(seed: int, own: Options) -> Options:
            path = write_rows(commands.out / f"few-{seed}.csv", labelled(seed))
            evaluation = {"train.eval-every": self.fine_tuning["train.steps"]}
            return {"data.path": path, **evaluation, **self.fine_tuning, **own, **NO_BANDS}

        ways = {
            LATENT: lambda seed, start: options(seed, {"init": commands.out / f"latent-{start}"}),
            SCRATCH: lambda seed, start: options(seed, self.model),
        }
        found = {BASELINE: {column: [baseline(labelled(seed)) for seed in seeds]}}
        lines = [
            f"Trained on {', '.join(name for name in speakers if name != tested)}, whose other recordings validate.",
            "The logistic regression is of mean and deviation over time of the log-mel filterbank.",
            probed(LATENT, runs),
        ]
        for name, way in ways.items():
            short = {LATENT: "latent", SCRATCH: "scratch"}[name]
            figures, rate = commands.fine_tune(f"{short}-few", "audio.train manifest", way, self.rates, seeds)
            found[name] = {column: figures}
            lines.append(f"{name}: fine-tuned at a learning rate of {rate:g}.")
        return "\n\n".join([table((column,), found), *lines])


def recordings(folder: Path) -> Rows:
    """The rows of all recordings, with whole paths."""
    return [{**row, "path": str((folder / row["path"]).absolute())} for row in rows_of(folder / LISTED)]


def baseline(rows: Sequence[dict[str, str]]) -> float:
    """The test accuracy of a logistic regression on mean and deviation of each mel bin."""
    parts = {}
    for split in ("train", "validation", "test"):
        own = [row for row in rows if row["split"] == split]
        parts[split] = np.stack([statistics_of(Path(row["path"])) for row in own]), [row["label"] for row in own]
    models = [
        make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=2000)).fit(*parts["train"])
        for strength in STRENGTHS
    ]
    return float(max(models, key=lambda model: model.score(*parts["validation"])).score(*parts["test"]))


def statistics_of(path: Path) -> Float[np.ndarray, "statistics"]:
    """Mean and deviation over time of each mel bin."""
    clip = read_audio(path, RATE)
    (energies,), _ = Filterbank(FeatureConfig(), RATE, BINS)(clip[None], torch.tensor([len(clip)]))
    return torch.cat([energies.mean(dim=1), energies.std(dim=1, correction=0)]).numpy()
