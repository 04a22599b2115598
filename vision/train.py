"""Train a ViT: `python -m vision.train EXPERIMENT [options]`."""

import math
from dataclasses import field, replace
from functools import partial
from pathlib import Path

from jaxtyping import Float
from torch import Tensor

from core import EncoderConfig, UserError, pair, patch_grid
from core.config import configclass
from core.data import DataSplits
from core.data.dataset import OneOf
from core.data.shards import ShardSamples
from core.experiments import Experiment, ExperimentTask, Modality, Panel, train_command
from core.experiments.adaptation import adaptation_task
from core.experiments.build import (
    Predictions,
    classification_task,
    config_to_train,
    masked_task,
    model_to_train,
    regression_task,
)
from core.experiments.probe import ProbeConfig
from core.files import filling
from core.models.targets import number_head
from core.objectives import LatentConfig, MaskedConfig
from core.training import TrainConfig
from core.training.loop import Fit

from .augment import Augment, make_mix
from .datasets import CIFAR10, CIFAR100, Digits, Folder, Manifest, MixedDigits, Shards, Unlabelled
from .growth import make_growth
from .images import collate
from .looks import look_at
from .model import Preprocess, ViT, ViTConfig
from .plots import attention_panel, masked_panel, neighbours_panel, predictions_panel
from .pretrained import load_pretrained
from .sizing import sizing
from .teacher import load_teacher, load_token_teacher


@configclass
class VisionExperiment(Experiment):
    data: OneOf[Digits | MixedDigits | CIFAR10 | CIFAR100 | Folder | Manifest | Shards | Unlabelled] = field(
        default_factory=Digits
    )
    model: ViTConfig = field(default_factory=ViTConfig)
    masked: MaskedConfig = field(default_factory=MaskedConfig)


@configclass
class VisionAdaptation(VisionExperiment):
    latent: LatentConfig = field(default_factory=lambda: LatentConfig(summary=0.01))
    probe: ProbeConfig = field(default_factory=ProbeConfig)


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


def mixed_digits() -> VisionExperiment:
    """The digits at sizes of 8 to 16 pixels a side and of any aspect ratio: none is padded or brought to one size."""
    start = digits()
    return replace(
        start,
        data=MixedDigits(augment=start.data.augment),
        model=replace(start.model, image_size=16, patch_size=4, stride=2),
    )


def digits_mae() -> VisionExperiment:
    """The digits without their classes: masked patches are predicted (masked autoencoding). Go on with --init."""
    start = digits()
    return replace(
        start,
        model=replace(start.model, patch_size=2, stride=2),
        masked=MaskedConfig(ratio=0.6),
        train=replace(start.train, steps=2400, lr=2e-3, eval_every=600),
    )


def cifar10() -> VisionExperiment:
    """60,000 photographs of 32 x 32 pixels in 10 classes (downloaded by torchvision, 170 MB), in 0.37 PFLOP.

    Half an hour of one core in bf16: 86.0, 85.9 and 86.7 % on 5,000 test images (2026-11-27, docs/results.md).
    """
    return VisionExperiment(
        data=CIFAR10(augment=Augment(shift=0.125, flip=True), validation_fraction=0.02),
        model=ViTConfig(
            image_size=32,
            patch_size=4,
            stem=(64, 64, 128, 128),
            stem_norm="batch",
            pool="mean",
            class_token=False,
            flip_average=True,
            preprocess=Preprocess(mean=(0.491, 0.482, 0.447), std=(0.247, 0.243, 0.262)),
            encoder=EncoderConfig(dim=128, depth=2, heads=4, mlp_dim=256),
        ),
        train=TrainConfig(
            steps=11_100,
            batch_size=128,
            optimizer="muon",
            lr=5e-3,
            schedule="linear",
            warmup=555,
            label_smoothing=0.1,
            ema=0.998,
            eval_every=2775,
            save_every=2775,
        ),
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
        size="auto",
    )


def manifest() -> VisionExperiment:
    """Your own images, listed in a CSV or JSONL file with path, label and perhaps split: --data.path FILE."""
    return replace(folder(), data=Manifest(augment=folder().data.augment))


def shards() -> VisionExperiment:
    """Your own images in shards, written by `python -m core.experiments.shard`: --data.path DIR or an address."""
    return replace(folder(), data=Shards(augment=folder().data.augment))


def adapt() -> VisionAdaptation:
    """Your own images without labels, to go on from a checkpoint (--init) or from random weights: --data.path DIR.

    With --distill.teacher MODEL nothing is masked, and the tokens of that model are learnt.
    """
    start = folder()
    return VisionAdaptation(
        data=Unlabelled(),
        model=start.model,
        train=TrainConfig(steps=10_000, batch_size=64, lr=5e-4, warmup=500, betas=(0.9, 0.98), eval_every=1000),
    )


OWN = ("dropout", "head_dropout", "flip_average")
"""Fields of the model's config that are not those of the model that a run starts from."""


def make_task(experiment: VisionExperiment) -> ExperimentTask:
    start = None if experiment.init is None else load_pretrained(experiment.init)
    config = config_to_train(start, experiment.model, OWN)
    config = experiment.data.sized(config)
    data = experiment.data.read(config.image_format)
    common = {"samples": experiment.data.named_samples(data), "in_memory": experiment.data.in_memory}
    growth = make_growth(config.image_format, experiment.data.augment.start_size)
    if len(growth.sizes) > 1 and (isinstance(experiment, VisionAdaptation) or experiment.masked.ratio):
        raise UserError("--data.augment.start-size is for training with labels: leave it out with masked patches.")
    if isinstance(experiment, VisionAdaptation):
        config = replace(config, classes=0, labels=())
        return adaptation_task(
            model_to_train(ViT, config, start),
            experiment,
            data,
            collate,
            grid=partial(grid_of_sample, config),
            features=ViT.features,
            labelled=lambda path: (Folder if path.is_dir() else Manifest)(path=path).read(config.image_format),
            neighbours=lambda indices, before, after: neighbours_panel(
                [data.validation[index][0] for index in indices], before, after, config.preprocess
            ),
            again=partial(make_task, experiment),
            teacher=load_token_teacher(experiment.distill.teacher, config),
            **common,
        )
    if experiment.masked.ratio:
        config = replace(config, classes=0, labels=())
        return masked_task(
            model_to_train(ViT, config, start),
            experiment.masked,
            data,
            collate,
            masked_panel,
            grid=partial(grid_of_sample, config),
            patch_values=math.prod(pair(config.patch_size)) * config.channels,
            **common,
        )
    common["growth"] = growth
    if experiment.data.in_memory:
        common["on_end"] = lambda run: save_samples(run, data)
    # The options of a manifest state what its labels are, and the index of shards what theirs are.
    source = data.validation.samples if isinstance(experiment.data, Shards) else experiment.data
    if isinstance(source, Manifest | ShardSamples) and source.predicts_number:
        config = replace(config, **number_head([label for _, label in data.train.samples]))
        plots = partial(plot_numbers, data=data)
        return regression_task(model_to_train(ViT, config, start), data, plots, collate=collate, **common)
    multilabel = isinstance(source, Manifest | ShardSamples) and source.multilabel
    config = replace(config, classes=len(data.labels), labels=data.labels, multilabel=multilabel)
    return classification_task(
        model_to_train(ViT, config, start),
        data,
        collate,
        lambda predictions: plot_predictions(predictions, data),
        train=experiment.train,
        distill=experiment.distill,
        teacher=load_teacher(experiment.distill.teacher, config),
        multilabel=multilabel,
        look=lambda model, index: look_at("the model", model, data.test[index][0]),
        baseline=lambda: experiment.data.baseline(data),
        mix=make_mix(experiment.data.augment, config.classes),
        **common,
    )


def grid_of_sample(config: ViTConfig, sample: tuple[Float[Tensor, "c h w"], int]) -> tuple[int, int]:
    """Rows and columns of the patches of an image."""
    rows, columns = sample[0].shape[1:]
    return patch_grid((rows, columns), config.patch_size, config.stride)


def plot_predictions(predictions: Predictions, data: DataSplits) -> list[Panel]:
    model = predictions.model
    images = [data.test[index][0] for index in predictions.indices]
    named = zip(predictions.predicted(data.labels), predictions.expected(data.labels), strict=True)
    return [
        predictions_panel(images, [*named], predictions.correct.tolist(), model.config.preprocess),
        attention_panel(model, images[-8:]),
    ]


def plot_numbers(fit: Fit, data: DataSplits) -> list[Panel]:
    """The test images with the largest errors, and what the model attends to in them."""
    predictions, targets = fit.results["predictions"], fit.results["targets"]
    worst = (predictions - targets).abs().argsort(descending=True)[:8].tolist()
    images = [data.test[index][0] for index in worst]
    named = [(f"{float(predictions[index]):.3g}", f"{float(targets[index]):.3g}") for index in worst]
    about = "Largest errors", "Test images; above each the prediction, and the number that it should be."
    return [
        predictions_panel(images, named, [False] * len(worst), fit.model.config.preprocess, *about),
        attention_panel(fit.model, images),
    ]


def save_samples(run: Path, data: DataSplits) -> None:
    """Write a few test images as files, on which vision.predict can be tried."""
    with filling(run / "samples") as folder:
        for index in range(0, len(data.test), max(len(data.test) // 10, 1)):
            image, label = data.test.samples[index]
            image.save(folder / f"{data.labels[label]}-{index}.png")


VISION = Modality(
    name="vision",
    experiments=(digits, mixed_digits, digits_mae, cifar10, cifar100, folder, manifest, shards, adapt),
    task=make_task,
    sizing=sizing,
)

if __name__ == "__main__":
    train_command(VISION)
