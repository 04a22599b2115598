"""Image data sets: named ones, a directory per class, a manifest; and what each image goes through."""

import math
from dataclasses import replace
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from PIL import Image
from torchvision import datasets

from core import UserError, patch_grid
from core.config import Count, configclass
from core.data import DataSplits, ListedFiles, ShardFiles, UnlabelledFiles, few_per_class, make_splits, read_folder
from core.data.cache import DecodeCache
from core.data.dataset import FileDataset, Folds, Name, NamedSamples, SplitFractions, ValidationFraction

from .augment import Augment, eval_transform, train_transform
from .decoding import image_mode, read_image
from .images import AffineImages, Images
from .model import ImageFormat, ViTConfig

SUFFIXES = (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".jp2", ".j2k", ".webp", ".avif", ".bmp", ".gif", ".tif", ".tiff")
SUFFIXES += (".pbm", ".pgm", ".ppm", ".pnm", ".pfm", ".tga")


@configclass
class ImageDataset:
    """What all image data sets share. A new one adds its own options and `samples`."""

    per_class: Count | None = None
    """Training images of each class that are used; None for all."""
    size: Literal["model", "native"] = "model"
    """native: each image keeps its own size and aspect ratio, scaled down to at most `max_tokens` tokens; model: as the
    model takes them, by default all resized to its image size."""
    max_tokens: Count | None = None
    """Most tokens of an image of native size, class and register tokens included; None: as many as an image of the
    model's image size has."""
    augment: Augment = Augment()
    in_memory: ClassVar[bool] = False
    """Whether the images are small and kept in memory, so that they cost nothing to fetch."""

    def samples(self) -> DataSplits:
        """Three lists of (image or path, class number), and the names of the classes."""
        raise NotImplementedError

    def sized(self, config: ViTConfig) -> ViTConfig:
        """The config of a model for images of the size that is asked for here."""
        if self.size == "model" and config.max_tokens is None:
            if self.max_tokens is not None:
                raise UserError(
                    f"--data.max-tokens {self.max_tokens} is for images of native size: add --data.size native."
                )
            return config
        grid = patch_grid(config.image_size, config.patch_size, config.stride)
        budget = self.max_tokens or config.max_tokens or config.prefix + math.prod(grid)
        if budget <= config.prefix:
            raise UserError(
                f"--data.max-tokens {budget} leaves no patch beside the model's {config.prefix} class and register "
                f"tokens: give at least {config.prefix + 1}."
            )
        return replace(config, max_tokens=budget)

    def read(self, form: ImageFormat) -> DataSplits:
        """Images as (tensor "c h w", target), the training images augmented."""
        if form.max_tokens is not None and (self.augment.mixup or self.augment.cutmix):
            raise UserError(
                "--data.augment.mixup and --data.augment.cutmix blend images of one size: set both to 0 for images of "
                "native size."
            )
        found = self.samples()
        images = partial(
            Images, classes=len(found.labels), mode=image_mode(form.channels), cache=self.open_cache(), form=form
        )
        train = few_per_class(found.train, self.per_class)
        return DataSplits(
            train=AffineImages(train, form, self.augment)
            if self.in_memory and self.augment.is_affine and form.max_tokens is None
            else images(train, train_transform(form, self.augment)),
            validation=images(found.validation, eval_transform(form)),
            test=images(found.test, eval_transform(form)),
            labels=found.labels,
            note=found.note,
        )

    def open_cache(self) -> DecodeCache | None:
        return None

    def baseline(self, data: DataSplits) -> tuple[str, float] | None:
        """The name of a simpler method and its test accuracy."""
        return None

    def named_samples(self, data: DataSplits) -> NamedSamples:
        """The files that the data consist of; none for data that are always the same."""
        return {}


@configclass
class Digits(ImageDataset, SplitFractions):
    """1,797 handwritten digits of 8 x 8 pixels, shipped with scikit-learn."""

    name: Name[Literal["digits"]] = "digits"
    in_memory: ClassVar[bool] = True

    def samples(self) -> DataSplits:
        from sklearn.datasets import load_digits

        pixels, targets = map(np.asarray, load_digits(return_X_y=True))
        images = [Image.fromarray(image) for image in (pixels * 15.9375).astype("uint8").reshape(-1, 8, 8)]
        return make_splits(
            [*zip(images, targets.tolist(), strict=True)],
            labels=tuple(map(str, range(10))),
            classes=itemgetter(1),
            test_fraction=self.test_fraction,
            validation_fraction=self.validation_fraction,
        )

    def baseline(self, data: DataSplits) -> tuple[str, float] | None:
        """An RBF support vector machine on raw pixels."""
        from sklearn.svm import SVC

        pixels, targets = (
            [[np.asarray(image).ravel() for image, _ in part.samples], [label for _, label in part.samples]]
            for part in (data.train, data.test)
        )
        machine = SVC(gamma=0.001 * (16 / 255) ** 2).fit(*pixels)  # pyright: ignore[reportArgumentType]
        return "RBF-SVM", float(machine.score(*targets))


@configclass
class MixedDigits(Digits):
    """The digits, each resized to 8 to 16 pixels in height and in width."""

    name: Name[Literal["mixed_digits"]] = "mixed_digits"  # pyright: ignore[reportIncompatibleVariableOverride]
    size: Literal["model", "native"] = "native"

    def samples(self) -> DataSplits:
        def resized(samples: list[tuple[Image.Image, int]], split: int) -> list[tuple[Image.Image, int]]:
            sizes = np.random.default_rng(split).integers(8, 17, (len(samples), 2)).tolist()
            return [(image.resize(size), label) for (image, label), size in zip(samples, sizes, strict=True)]

        found = super().samples()
        parts = {name: resized(part, split) for split, (name, part) in enumerate(found.parts().items())}
        return replace(found, **parts)

    def baseline(self, data: DataSplits) -> None:
        """Other methods need images of one size."""


@configclass
class CIFAR(ImageDataset, ValidationFraction):
    """60,000 photographs of 32 x 32 pixels (Krizhevsky 2009)."""

    path: Path = Path("data")
    """Where the data set is kept, and downloaded if it is not there; or a directory with its images as files,
    train/<class>/ and test/<class>/."""
    source: ClassVar[type[datasets.CIFAR10]]

    @property
    def in_memory(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Other changes than affine maps take so long that processes of their own are worth it."""
        return self.augment.is_affine

    def samples(self) -> DataSplits:
        if (self.path / "train").is_dir():
            fractions = SplitFractions(validation_fraction=self.validation_fraction)
            found = read_folder(self.path, SUFFIXES, fractions)
            return found.map(lambda part: [(read_image(path, "RGB"), label) for path, label in part])
        try:
            parts = [self.source(self.path, train=train, download=True) for train in (True, False)]
        except (OSError, RuntimeError) as error:
            raise UserError(
                f"{self.source.__name__} could not be downloaded into {self.path} ({error}): fetch "
                f"{self.source.url} and put it there."
            ) from None
        train, test = (
            [(Image.fromarray(image), label) for image, label in zip(part.data, part.targets, strict=True)]
            for part in parts
        )
        labels, fraction = tuple(parts[0].classes), self.validation_fraction
        return make_splits(train, test=test, labels=labels, classes=itemgetter(1), validation_fraction=fraction)


@configclass
class CIFAR10(CIFAR):
    """60,000 photographs of 32 x 32 pixels in 10 classes."""

    name: Name[Literal["cifar10"]] = "cifar10"
    source: ClassVar[type[datasets.CIFAR10]] = datasets.CIFAR10


@configclass
class CIFAR100(CIFAR):
    """60,000 photographs of 32 x 32 pixels in 100 classes."""

    name: Name[Literal["cifar100"]] = "cifar100"
    source: ClassVar[type[datasets.CIFAR10]] = datasets.CIFAR100


@configclass
class Folder(FileDataset, Folds, ImageDataset):
    """Image files, one directory per class."""

    name: Name[Literal["folder"]] = "folder"

    def samples(self) -> DataSplits:
        return read_folder(self.given_path(), SUFFIXES, self)


@configclass
class Manifest(FileDataset, ListedFiles, ImageDataset):
    """Image files, listed with their labels in a CSV or JSON Lines file."""

    name: Name[Literal["manifest"]] = "manifest"

    def samples(self) -> DataSplits:
        return self.listed(self.given_path())


@configclass
class Unlabelled(UnlabelledFiles, ImageDataset):
    """Image files at or below a folder, or listed in a manifest, to learn from without classes."""

    name: Name[Literal["unlabelled"]] = "unlabelled"
    augment: Augment = Augment(crop=0.5, flip=True)

    def samples(self) -> DataSplits:
        return self.unlabelled(SUFFIXES)


@configclass
class Shards(ShardFiles, ImageDataset):
    """Images in shards, which `python -m core.experiments.shard` makes of a folder or a manifest."""

    name: Name[Literal["shards"]] = "shards"

    def samples(self) -> DataSplits:
        return self.read_files(SUFFIXES)
