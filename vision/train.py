"""Train a ViT: `python -m vision.train EXPERIMENT [options]`."""

import math
from dataclasses import field, replace
from functools import partial
from pathlib import Path

import torch

from core import Classification, EncoderConfig, pair, patch_grid
from core.config import configclass
from core.data import DataSplits
from core.data.dataset import OneOf
from core.experiments import Experiment, Modality, Panel, Task, train_command
from core.experiments.plots import confusion, per_class
from core.files import filling
from core.models.tuning import start_from, started_config
from core.objectives.masked_patches import (
    MaskedAutoencoder,
    MaskedConfig,
    MaskedPatches,
    Noisy,
    check_whole,
    collate_noisy,
)
from core.training import TrainConfig
from core.training.loop import Fit

from .augment import Augment, make_mix
from .datasets import CIFAR10, CIFAR100, Digits, Folder, Manifest, collate
from .model import Preprocess, ViT, ViTConfig
from .plots import attention_panel, masked_panel, samples_panel
from .pretrained import load_pretrained


@configclass
class VisionExperiment(Experiment):
    data: OneOf[Digits | CIFAR10 | CIFAR100 | Folder | Manifest] = field(default_factory=Digits)
    model: ViTConfig = field(default_factory=ViTConfig)
    masked: MaskedConfig = field(default_factory=MaskedConfig)


def digits() -> VisionExperiment:
    """1,797 handwritten digits of 8 x 8 pixels, shipped with scikit-learn: a whole run in a minute."""
    return VisionExperiment(
        data=Digits(augment=Augment(rotate=10.0, shift=0.06, zoom=0.05)),
        model=ViTConfig(
            image_size=8,
            patch_size=3,
            stride=1,
            channels=1,
            encoder=EncoderConfig(dim=64, depth=4, heads=4, mlp_dim=128),
        ),
        train=TrainConfig(steps=1200, batch_size=64, lr=1e-3, warmup=100, precision="fp32", eval_every=200),
    )


def digits_mae() -> VisionExperiment:
    """The digits without their classes: hidden patches, told from the rest (masked autoencoding). Go on with --init."""
    start = digits()
    return replace(
        start,
        model=replace(start.model, patch_size=2, stride=2),
        masked=MaskedConfig(share=0.6),
        train=replace(start.train, steps=2400, lr=2e-3, eval_every=600),
    )


def cifar10() -> VisionExperiment:
    """60,000 photographs of 32 x 32 pixels in 10 classes (downloaded by torchvision, 170 MB)."""
    return VisionExperiment(
        data=CIFAR10(augment=Augment(crop=0.5, flip=True, policy="rand-m9-mstd0.5", mixup=0.8, cutmix=1.0)),
        model=ViTConfig(
            image_size=32,
            patch_size=4,
            pool="mean",
            class_token=False,
            head_norm=True,
            preprocess=Preprocess(mean=(0.491, 0.482, 0.447), std=(0.247, 0.243, 0.262)),
            encoder=EncoderConfig(dim=384, depth=7, heads=6, mlp_dim=768, drop_path=0.1, final_norm=False),
        ),
        train=TrainConfig(steps=40_000, batch_size=256, warmup=2000, ema=0.9995, eval_every=2000, save_every=2000),
    )


def cifar100() -> VisionExperiment:
    """As cifar10, in 100 classes."""
    return replace(cifar10(), data=CIFAR100(augment=cifar10().data.augment))


def folder() -> VisionExperiment:
    """Your own images, one directory per class (or train/ and test/ with those inside): --data.path DIR."""
    return VisionExperiment(
        data=Folder(augment=Augment(crop=0.3, flip=True, policy="rand-m9-mstd0.5", erase=0.25)),
        model=ViTConfig(preprocess=Preprocess(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), crop=0.9)),
        train=TrainConfig(steps=10_000, batch_size=64, accumulate=4, lr=5e-4, warmup=1000, label_smoothing=0.1),
    )


def manifest() -> VisionExperiment:
    """Your own images, listed in a CSV or JSONL file with path, label and perhaps split: --data.path FILE."""
    return replace(folder(), data=Manifest(augment=folder().data.augment))


def make_task(experiment: VisionExperiment) -> Task:
    config, start = experiment.model, None
    if experiment.init is not None:
        start = load_pretrained(experiment.init)
        config = started_config(start.config, config, ("dropout", "head_dropout"))
    data = experiment.data.read(config.image_format)
    if experiment.masked.share:
        return masked_task(experiment, replace(config, classes=0, labels=()), start, data)
    config = replace(config, classes=len(data.labels), labels=data.labels)
    model = ViT(config) if start is None else start_from(ViT(config), start)
    return Task(
        model=model,
        samples=experiment.data.named_samples(data),
        objective=Classification(label_smoothing=experiment.train.label_smoothing),
        train=data.train,
        test=data.test,
        collate=collate,
        mix=make_mix(experiment.data.augment, config.classes),
        in_memory=experiment.data.in_memory,
        baseline=lambda: experiment.data.baseline(data),
        panels=lambda found: report_panels(found, data),
        finish=(lambda run: save_samples(run, data)) if experiment.data.in_memory else lambda run: None,
    )


def masked_task(experiment: VisionExperiment, config: ViTConfig, start: ViT | None, data: DataSplits) -> Task:
    check_whole(experiment.tune)
    model = ViT(config) if start is None else start_from(ViT(config), start)
    size, block = (pair(config.image_size), experiment.masked.block)
    grid = patch_grid(size, config.patch_size, config.stride)
    train, test = Noisy(data.train, grid, block, fixed=False), Noisy(data.test, grid, block, fixed=True)
    return Task(
        samples=experiment.data.named_samples(data),
        model=MaskedAutoencoder(model, experiment.masked, math.prod(pair(config.patch_size)) * config.channels),
        objective=MaskedPatches(),
        train=train,
        test=test,
        collate=partial(collate_noisy, collate),
        in_memory=experiment.data.in_memory,
        panels=lambda found: [masked_panel(found.model, test)],
        kept=lambda model: model.model,
    )


def report_panels(found: Fit, data: DataSplits) -> list[Panel]:
    model, labels = found.model, data.labels
    targets, chances = found.results["targets"], found.results["probabilities"]
    predictions = chances.argmax(dim=-1)
    # The surest mistakes first, then an even walk through the test set.
    wrong = (predictions != targets).nonzero().flatten()
    wrong = wrong[chances[wrong, targets[wrong]].argsort()][:8].tolist()
    walk = [int(i * len(targets) / 24) for i in range(24)]
    shown = [*wrong, *(i for i in dict.fromkeys(walk) if i not in wrong)][:24]
    images = [data.test[i][0] for i in shown]
    return [
        samples_panel(images, targets[shown].tolist(), chances[shown], labels, model.config.preprocess),
        attention_panel(model, torch.stack(images[-8:])),
        confusion(targets.numpy(), predictions.numpy(), labels),
        per_class(targets.numpy(), predictions.numpy(), labels),
    ]


def save_samples(run: Path, data: DataSplits) -> None:
    """A few test images as files, to try vision.predict on."""
    with filling(run / "samples") as folder:
        for index in range(0, len(data.test), len(data.test) // 10):
            image, label = data.test.samples[index]
            image.save(folder / f"{data.labels[label]}-{index}.png")


VISION = Modality(name="vision", experiments=(digits, digits_mae, cifar10, cifar100, folder, manifest), task=make_task)

if __name__ == "__main__":
    train_command(VISION)
