"""Transfer between parts of the embedded data: an hour on 2 cores.

A model is trained on one part of the embedded data, or on masked patches of it, and then on another part: by full
fine-tuning, by LoRA, or with its head alone. Beside them is a model that starts from random weights. Each way has its
own learning rate, the best of a few on another seed.
"""

import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from audio import AST
from audio.datasets import collate as collate_audio
from audio.dtmf import TestClips, TrainClips
from audio.train import dtmf, dtmf_mae
from audio.train import make_task as audio_task
from core import Classification
from core.adapters import ROLES, LoRA
from core.experiments import ExperimentTask
from core.models.tuning import initialize, merge_adapters, tune
from core.training import TrainConfig, fit
from core.training.sampling import seed_everything
from text.train import docstrings, manuals
from text.train import make_task as text_task
from vision import ViT
from vision.augment import eval_transform
from vision.decoding import image_mode
from vision.images import AffineImages, Images
from vision.images import collate as collate_images
from vision.train import digits, digits_mae
from vision.train import make_task as vision_task

SEEDS = (0, 1, 2)
WAYS = {"scratch": "from random weights", "full": "full", "lora": "LoRA", "head": "head alone"}
LORA = LoRA(rank=8, roles=ROLES)


@dataclass(frozen=True)
class Transfer:
    first: Callable[[], ExperimentTask]
    first_training: TrainConfig
    second: Callable[[Path | None], ExperimentTask]
    """Started from a directory with the first part's model, or from random weights."""
    second_training: TrainConfig
    rates: Mapping[str, float]
    """Peak learning rate of each way to train on the second part."""
    beside: tuple[str, ...] = ("head",)
    """What is trained beside a LoRA."""


def main(names: Sequence[str] = (), seeds: Sequence[int] = SEEDS) -> None:
    """names: how those begin that are to be tried; all if there are none."""
    print(f"| | {' | '.join(WAYS.values())} |\n|{'---|' * (1 + len(WAYS))}")
    for name, transfer in TRANSFERS.items():
        if names and not name.startswith(tuple(names)):
            continue
        found: dict[str, list[float]] = {way: [] for way in transfer.rates}
        for seed in seeds:
            with TemporaryDirectory() as folder:
                start = Path(folder) / "first"
                train(transfer.first, transfer.first_training, "full", start, seed)
                for way, rate in transfer.rates.items():
                    make = partial(transfer.second, None if way == "scratch" else start)
                    training = replace(transfer.second_training, lr=rate)
                    beside = transfer.beside if way == "lora" else ("head",)
                    found[way].append(train(make, training, way, Path(folder) / way, seed, beside))
                    print(f"{name}, seed {seed}, {way}: {found[way][-1]:.2%}", file=sys.stderr)
        cells = (_cell(found[way]) if way in found else "" for way in WAYS)
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


def _cell(accuracies: Sequence[float]) -> str:
    return f"{statistics.mean(accuracies):.1%} ({', '.join(f'{100 * a:.1f}' for a in accuracies)})"


def train(
    make: Callable[[], ExperimentTask],
    config: TrainConfig,
    way: str,
    run: Path,
    seed: int,
    beside: tuple[str, ...] = ("head",),
) -> float:
    """The test metric; the model is left in the directory."""
    seed_everything(seed)
    task = make()
    tune(task.model, "full" if way == "scratch" else way, lora=LORA, head=beside)
    config = replace(config, seed=seed, eval_every=config.steps, save_every=config.steps)
    run.mkdir()
    found = fit(replace(task, in_memory=True), config, run)
    task.saved_part(merge_adapters(found.model)).save_pretrained(run / "model")
    task.on_end(run)
    return found.metrics[task.objective.primary]


def some_digits(classes: range, start: Path | None = None) -> ExperimentTask:
    experiment = digits()
    data = experiment.data.read(experiment.model.image_format)
    parts = [
        [(image, label - classes[0]) for image, label in part.samples if label in classes]
        for part in (data.train, data.test)
    ]
    config = replace(experiment.model, classes=len(classes))
    return ExperimentTask(
        model=ViT(config) if start is None else initialize(ViT(config), ViT.from_run(start)),
        objective=Classification(),
        train=AffineImages(parts[0], config.image_format, experiment.data.augment),
        test=Images(parts[1], eval_transform(config.image_format), image_mode(config.channels)),
        collate=collate_images,
    )


def some_keys(levels: range, start: Path | None = None) -> ExperimentTask:
    config = replace(dtmf().model, classes=16)
    return ExperimentTask(
        model=AST(config) if start is None else initialize(AST(config), AST.from_run(start)),
        objective=Classification(),
        train=TrainClips(levels=(levels[0], levels[-1])),
        test=TestClips(levels=levels),
        collate=collate_audio,
    )


def some_docstrings(start: Path | None) -> ExperimentTask:
    return text_task(replace(docstrings(), init=None if start is None else str(start)))


def few_digits(start: Path | None) -> ExperimentTask:
    few = replace(digits(), model=digits_mae().model, init=None if start is None else str(start))
    return vision_task(replace(few, data=replace(few.data, per_class=10)))


def few_keys(start: Path | None) -> ExperimentTask:
    few = replace(dtmf(), model=dtmf_mae().model, init=None if start is None else str(start))
    return audio_task(replace(few, data=replace(few.data, per_class=10)))


TRANSFERS = {
    "vision: digits 0-4, then 5-9": Transfer(
        first=lambda: some_digits(range(5)),
        first_training=replace(digits().train, steps=600),
        second=lambda start: some_digits(range(5, 10), start),
        second_training=replace(digits().train, steps=300, warmup=30),
        rates={"scratch": 4e-3, "full": 4e-3, "lora": 5e-3, "head": 1e-1},
    ),
    "audio: keys in noise of 5 to 20 dB, then -10 to 0 dB": Transfer(
        first=lambda: some_keys(range(5, 21, 5)),
        first_training=replace(dtmf().train, steps=750, warmup=75),
        second=lambda start: some_keys(range(-10, 1, 5), start),
        second_training=replace(dtmf().train, steps=500, warmup=50),
        rates={"scratch": 4e-3, "full": 4e-3, "lora": 5e-3, "head": 1e-2},
        beside=("head", "embed"),  # which the noise meets first; with the head alone LoRA is 1.4 points behind
    ),
    "text: masked tokens of manuals, then docstrings": Transfer(
        first=lambda: text_task(manuals()),
        first_training=manuals().train,
        second=some_docstrings,
        second_training=docstrings().train,
        rates={"scratch": 1e-3, "full": 1e-3, "lora": 3e-3, "head": 1e-2},
        beside=("head", "embed"),  # most words are learnt here, after so short a pre-training
    ),
    "masked digits, then 10 labels a class": Transfer(
        first=lambda: vision_task(digits_mae()),
        first_training=digits_mae().train,
        second=few_digits,
        second_training=replace(digits().train, steps=600, warmup=60),
        rates={"scratch": 4e-3, "full": 4e-3},
    ),
    "masked keys in noise, then 10 labels a class": Transfer(
        first=lambda: audio_task(dtmf_mae()),
        first_training=dtmf_mae().train,
        second=few_keys,
        second_training=replace(dtmf().train, steps=400, warmup=40),
        rates={"scratch": 4e-3, "full": 4e-3},
    ),
}
