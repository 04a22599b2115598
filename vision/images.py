"""Samples of image data sets: read and transformed when they are asked for, and put into batches."""

import math
from collections.abc import Callable, Sequence
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, default_collate
from torchvision.transforms import v2

from core import Batch, patch_grid
from core.data.cache import DecodeCache
from core.data.shards import shards_of
from core.data.targets import Label, join_targets, target_of
from core.files import File

from .augment import TO_FLOAT, Augment, Normalise, affine, resize, shifted
from .decoding import DECODING, image_mode, read_image, read_size
from .model import ImageFormat
from .native import native_grid

ImageSample = tuple[Image.Image | File, Label]
"""An image or its file, and its label."""
Target = int | float | Float[Tensor, "classes"]


def size_of(image: Image.Image | File) -> tuple[int, int]:
    """Rows and columns of an image, by the header of its file."""
    return (image.height, image.width) if isinstance(image, Image.Image) else read_size(image)


class Images(Dataset):
    """Samples of (image or path, label), read and transformed when asked for.

    classes: how many there are. form: what `transform` makes, by which the tokens of each image are counted.
    """

    def __init__(
        self,
        samples: Sequence[ImageSample],
        transform: Callable,
        mode: str,
        cache: DecodeCache | None = None,
        form: ImageFormat | None = None,
        classes: int = 0,
    ):
        self.samples, self.transform, self.mode, self.cache, self.form = samples, transform, mode, cache, form
        self.classes = classes
        self.shards = shards_of(samples)

    @cached_property
    def class_numbers(self) -> list[Label]:
        return [label for _, label in self.samples]

    @cached_property
    def token_counts(self) -> list[int] | None:
        """The tokens of each image, class and register tokens included, by the headers of the files; None if there is
        no `form`, or if shards would have to be read for it."""
        form = self.form
        if form is None:
            return None
        if form.max_tokens is None:
            return [form.prefix + math.prod(patch_grid(form.size, form.patch_size, form.stride))] * len(self)
        if self.shards is not None:
            return None
        sizes = (size_of(image) for image, _ in self.samples)
        return [form.prefix + math.prod(native_grid(form, size)) for size in sizes]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Float[Tensor, "c h w"], Target]:
        return self.transform(self.image(index)), target_of(self.samples[index][1], self.classes)

    def image(self, index: int) -> Image.Image:
        source = self.samples[index][0]
        return source.convert(self.mode) if isinstance(source, Image.Image) else self.read(source)

    def read(self, path: File) -> Image.Image:
        if self.cache is None:
            return read_image(path, self.mode)
        key = f"{self.mode}, {DECODING}"
        return Image.fromarray(self.cache.get(path, key, lambda: np.asarray(read_image(path, self.mode))))


class AffineImages(Images):
    """Images that are only rotated, shifted, zoomed, sheared and mirrored at random: kept at the model's size, and
    changed a batch at a time, since torchvision's affine map is the same for all images of a batch.

    The maps are those of `train_transform`, which rounds grey levels to 1 / 255 and shifts to whole pixels, as is done
    here where an image is shifted and mirrored only.
    """

    draws = 7

    def __init__(self, samples: Sequence[ImageSample], form: ImageFormat, augment: Augment):
        transform = v2.Compose([*resize(form, crop=1.0), v2.PILToTensor()])
        super().__init__(samples, transform, image_mode(form.channels), form=form)
        self.augment, self.to_float, self.normalise = augment, TO_FLOAT[1], Normalise(form.preprocess)
        self.images = torch.stack([transform(self.image(index)) for index in range(len(samples))])

    def __getitem__(self, index: int) -> tuple[Float[Tensor, "c h w"], Target]:
        return self.make([index], np.random.random((1, self.draws)))[0]

    def make(
        self, indices: list[int], draws: Float[np.ndarray, "n draws"]
    ) -> list[tuple[Float[Tensor, "c h w"], Target]]:
        rows, columns = self.images.shape[2:]
        either_side = 2 * draws.T - 1
        limits = [[self.augment.rotate], [self.augment.shear], [self.augment.shear]]
        angle, *shear = np.radians(either_side[:3] * limits)
        shift = either_side[3:5] * self.augment.shift * [[columns], [rows]]
        zoom = 1 + either_side[5] * self.augment.zoom
        images = self.to_float(self.images[indices])
        if self.augment.flip:
            mirrored = torch.from_numpy(draws[:, 6] < 0.5)
            images[mirrored] = images[mirrored].flip(3)
        if self.augment.rotate or self.augment.shear or self.augment.zoom:
            images = affine(images, angle, shear, shift, zoom)
        elif self.augment.shift:
            images = shifted(images, shift.round().astype(int))
        images = self.normalise(images)
        targets = [target_of(self.samples[index][1], self.classes) for index in indices]
        return [*zip(images, targets, strict=True)]


def collate(samples: list[tuple[Float[Tensor, "c _h _w"], Target]]) -> Batch:
    """A batch of images, or a list of them if their sizes differ."""
    images, targets = zip(*samples, strict=True)
    if len({image.shape for image in images}) == 1:
        images = default_collate([*images])  # in a loading process, it makes a shared tensor
    else:  # in one memory, since each that a loading process shares keeps a file open
        parts = torch.cat([image.flatten() for image in images]).split([image.numel() for image in images])
        images = [part.view_as(image) for part, image in zip(parts, images, strict=True)]
    return Batch((images,), join_targets(targets))
