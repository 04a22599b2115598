"""Pictures to learn from: named data sets, a directory per class, a manifest; and what each goes through."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, default_collate
from torchvision import datasets
from torchvision.transforms import v2

from core import Batch, UserError
from core.config import BetweenZeroAndOne, Count, configclass
from core.data import few_per_class, read_folder, read_manifest, stratified_split
from core.data.cache import DecodeCache, open_cache

from .augment import AFFINE, TO_FLOAT, Augment, _fit, _Normalise, affine, eval_transform, train_transform
from .decoding import DECODING, image_mode, read_image
from .model import ViTConfig

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")


@configclass
class DataConfig:
    name: Literal["digits", "cifar10", "cifar100", "folder", "manifest"] = "digits"
    """Which data."""
    path: Path | None = None
    """The folder, the manifest, or where a named data set is kept (data/ by default)."""
    test_fraction: BetweenZeroAndOne = 0.2
    """Share of test images where the data come without a split of their own."""
    per_class: Count | None = None
    """Training images of each class that are used; None for all."""
    cache: Path | None = None
    """Directory that keeps decoded files, so that each is decoded once; None for none."""
    augment: Augment = Augment()


class ImageData(NamedTuple):
    train: Dataset
    test: Dataset
    labels: tuple[str, ...]
    validation: Dataset | None = None
    note: str = ""
    """Where the validation and the test split come from."""


def read_data(config: DataConfig, model: ViTConfig) -> ImageData:
    """Training and test images as (tensor "c h w", class number), made to the model's size."""
    match config.name:
        case "digits":
            from sklearn.datasets import load_digits

            digits = load_digits()
            images = [Image.fromarray(image) for image in (digits.images * 15.9375).astype("uint8")]
            train, test = stratified_split(digits.target.tolist(), config.test_fraction)
            parts = [[(images[i], int(digits.target[i])) for i in part] for part in (train, test)]
            labels = tuple(map(str, range(10)))
        case "cifar10" | "cifar100":
            parts, labels = _cifar(config)
        case "folder" | "manifest":
            if config.path is None:
                raise UserError(f"The {config.name} data need --data.path.")
            if config.name == "folder":
                found = read_folder(config.path, SUFFIXES, config.test_fraction)
            else:
                found = read_manifest(config.path, config.test_fraction)
            parts, labels = [found.train, found.test], found.labels
    parts[0] = few_per_class(parts[0], config.per_class)
    mode, augment = image_mode(model.channels), config.augment
    cache = open_cache(config.cache, config.path)
    test = Images(parts[1], eval_transform(model), mode, cache)
    if is_in_memory(config) and replace(augment, **dict.fromkeys(AFFINE, 0.0), mixup=0.0, cutmix=0.0) == Augment():
        return ImageData(AffineImages(parts[0], model, augment), test, labels)
    return ImageData(Images(parts[0], train_transform(model, augment), mode, cache), test, labels)


class Images(Dataset):
    """Samples of (image or path, class number), read and transformed when asked for."""

    def __init__(self, samples: list, transform: Callable, mode: str, cache: DecodeCache | None = None):
        self.samples, self.transform, self.mode, self.cache = samples, transform, mode, cache

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Float[Tensor, "c h w"], int]:
        source, label = self.samples[index]
        return self.transform(self.read(source) if isinstance(source, Path) else source.convert(self.mode)), label

    def read(self, path: Path) -> Image.Image:
        if self.cache is None:
            return read_image(path, self.mode)
        form = f"{self.mode}, {DECODING}"
        return Image.fromarray(self.cache.get(path, form, lambda: np.asarray(read_image(path, self.mode))))


class AffineImages(Images):
    """Images that only turn, move, grow and lean at random: kept at the model's size, and changed a batch at a time.

    The maps of `train_transform`; but it rounds grey levels to 1 / 255 and shifts to whole pixels.
    """

    draws = 6

    def __init__(self, samples: list, model: ViTConfig, augment: Augment):
        super().__init__(samples, v2.Compose([*_fit(model, crop=1.0), *TO_FLOAT]), image_mode(model.channels))
        self.augment, self.normalise = augment, _Normalise(model.preprocess)
        self.images = torch.stack([super(AffineImages, self).__getitem__(i)[0] for i in range(len(samples))])

    def __getitem__(self, index: int) -> tuple[Float[Tensor, "c h w"], int]:
        return self.make([index], np.random.random((1, self.draws)))[0]

    def make(self, indices: list[int], draws: Float[np.ndarray, "n draws"]) -> list[tuple[Float[Tensor, "c h w"], int]]:
        rows, columns = self.images.shape[2:]
        either_side = 2 * draws.T - 1
        turn, *lean = np.radians(either_side[:3] * [[self.augment.rotate], [self.augment.shear], [self.augment.shear]])
        shift = either_side[3:5] * self.augment.shift * [[columns], [rows]]
        zoom = 1 + either_side[5] * self.augment.zoom
        images = self.normalise(affine(self.images[indices], turn, lean, shift, zoom))
        return [(image, self.samples[index][1]) for image, index in zip(images, indices, strict=True)]


def collate(samples: list[tuple[Float[Tensor, "c h w"], int]]) -> Batch:
    images, labels = zip(*samples, strict=True)
    return Batch((default_collate(images),), torch.tensor(labels))  # it stacks where a loading process shares


def _cifar(config: DataConfig) -> tuple[list[list], tuple[str, ...]]:
    kind = datasets.CIFAR10 if config.name == "cifar10" else datasets.CIFAR100
    root = config.path or Path("data")
    try:
        parts = [kind(root, train=train, download=True) for train in (True, False)]
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"{config.name} could not be downloaded into {root} ({error}): fetch {kind.url} and put it there."
        ) from None
    samples = [
        [(Image.fromarray(image), label) for image, label in zip(part.data, part.targets, strict=True)]
        for part in parts
    ]
    return samples, tuple(parts[0].classes)


def is_in_memory(config: DataConfig) -> bool:
    return config.name == "digits"
