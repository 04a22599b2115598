"""CIFAR-10 without labels, from random weights: masked latents beside a masked autoencoder of equal time."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .commands import Commands, Options, probed, table
from .real_data import Rows, few_and_as_many, write_rows

MODEL = {
    "model.image-size": 32,
    "model.patch-size": 4,
    "model.dim": 128,
    "model.depth": 6,
    "model.heads": 4,
    "model.pool": "mean",
    "model.no-class-token": True,
    "model.preprocess.crop": 1.0,
}
CROPS = {
    "data.augment.crop": 0.5,
    "data.augment.flip": True,
    "data.augment.policy": "",
    "data.augment.erase": 0.0,
}
MUON = {"train.optimizer": "muon", "train.lr": 5e-3, "train.betas": (0.9, 0.95)}
ONE_MASK = {"latent.masks": 1, "latent.summary": 0.0, "latent.ema": 0.98, "latent.ema-end": 0.999}
LATENT, MAE, SCRATCH = "masked latent prediction", "masked autoencoder", "random weights"


@dataclass(frozen=True)
class Cifar10:
    minutes: float = 10
    """Of each pre-training, evaluations not counted."""
    model: Options = field(default_factory=lambda: MODEL)
    batch: int = 128
    pretraining: Mapping[str, tuple[str, Options]] = field(
        default_factory=lambda: {
            LATENT: (
                "vision.train adapt",
                {**ONE_MASK, "data.augment.crop": 0.5, **MUON},
            ),
            MAE: ("vision.train folder", {"masked.ratio": 0.75, **CROPS, **MUON}),
        }
    )
    few: int = 100
    """Labels of each class to fine-tune on; as many others to choose by."""
    fine_tuning: Options = field(
        default_factory=lambda: {**CROPS, "train.steps": 300, "train.batch-size": 64, "train.warmup": 30}
    )
    rates: Sequence[float] = (5e-4, 1e-3)
    """Learning rates of fine-tuning, of which the best on the validation split is taken for each start."""

    def run(self, commands: Commands, folder: Path, seeds: Sequence[int]) -> str:
        """The table, and a line for each choice."""
        columns = ("linear probe", "nearest neighbours", f"fine-tuned, {self.few} labels a class")
        found = {name: {column: [] for column in columns} for name in (*self.pretraining, SCRATCH)}
        lines = []
        for name in self.pretraining:
            runs = self._pretrain(commands, folder, seeds, name)
            taken = ", ".join(f"{run['train_seconds'] / 60:.1f}" for run in runs)
            lines.append(f"{name}: {runs[0]['steps']:,} steps of {self.batch} images in {taken} minutes.")
            if self._is_probed(name):
                lines.append(probed(name, runs))
            for seed in seeds:
                run = commands.out / f"{short(name)}-{seed}"
                options = {"data.path": folder, "init": run}
                *own, linear, near = commands.probe(f"{run.name}-probe", "vision.probe folder", options)
                for column, figure in zip(columns, own, strict=False):
                    found[name][column].append(figure)
                if name == next(iter(self.pretraining)):
                    found[SCRATCH][columns[0]].append(linear)
                    found[SCRATCH][columns[1]].append(near)
        for name in found:

            def options(seed: int, start: int, name: str = name) -> Options:
                own = self.model if name == SCRATCH else {"init": commands.out / f"{short(name)}-{start}"}
                return {**self._few(commands, folder, seed), **own}

            figures, rate = commands.fine_tune(
                f"{short(name)}-few", "vision.train manifest", options, self.rates, seeds
            )
            found[name][columns[2]] = figures
            lines.append(f"{name}: fine-tuned at a learning rate of {rate:g}.")
        return "\n\n".join([table(columns, found), *lines])

    def _pretrain(self, commands: Commands, folder: Path, seeds: Sequence[int], name: str) -> list[dict[str, Any]]:
        """Train as many steps as there is time for, and return the summary of each seed."""
        command, options = self.pretraining[name]
        options = {**self.model, **options, "data.path": folder, "data.validation-fraction": 0.02}
        options |= {"train.batch-size": self.batch, "train.accumulate": 1}
        seconds = commands.step_seconds(f"{short(name)}-speed", command, options)
        steps = max(round(60 * self.minutes / seconds), 1)
        options |= {"train.steps": steps, "train.warmup": steps // 10, "train.eval-every": max(steps // 4, 1)}
        if self._is_probed(name):
            options |= {"probe.path": folder}
        return [commands.train(f"{short(name)}-{seed}", command, {**options, "train.seed": seed}) for seed in seeds]

    def _is_probed(self, name: str) -> bool:
        """Whether features are probed while they are trained."""
        return self.pretraining[name][0].endswith(" adapt")

    def _few(self, commands: Commands, folder: Path, seed: int) -> Options:
        """The options of fine-tuning on a few labels, which the seed draws."""
        rows = few_images(folder, self.few, seed)
        steps = {"train.eval-every": self.fine_tuning["train.steps"], "train.accumulate": 1}
        return {"data.path": write_rows(commands.out / f"few-{seed}.csv", rows), **steps, **self.fine_tuning}


def few_images(folder: Path, count: int, seed: int) -> Rows:
    """So many training images of each class, as many to validate on, and all test images."""
    train, test = (
        [
            {"path": str(file.absolute()), "label": file.parent.name, "split": split}
            for file in sorted((folder / split).rglob("*.jpg"))
        ]
        for split in ("train", "test")
    )
    return [*few_and_as_many(train, count, seed), *test]


def short(name: str) -> str:
    return name.replace(" ", "-")
