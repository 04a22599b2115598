"""Images of native size: each keeps its aspect ratio, within a budget of tokens.

As NaViT (Dehghani et al. 2023) and SigLIP 2's NaFlex (Tschannen et al. 2025). An image is scaled to whole patches, and
down until it has few enough of them; it is never enlarged by more than that rounding.
"""

import math
from collections.abc import Sequence
from functools import lru_cache

import torch
from PIL import Image
from torchvision.transforms import v2

from core import pair

from .model import ImageFormat

HALVINGS = 50  # of the interval in which the scale is sought
ASPECTS = (3 / 4, 4 / 3)  # of a random crop to its image; RandomResizedCrop's own, there to a square


def native_grid(form: ImageFormat, size: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of the patches of an image; size: its rows and columns of pixels."""
    assert form.max_tokens is not None
    return _largest_grid(size, pair(form.patch_size), form.steps, form.max_tokens - form.prefix)


def native_size(form: ImageFormat, size: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of pixels that an image is scaled to; size: those it has."""
    grid = native_grid(form, size)
    rows, columns = (p + (n - 1) * s for p, n, s in zip(pair(form.patch_size), grid, form.steps, strict=True))
    return rows, columns


@lru_cache(maxsize=4096)
def _largest_grid(size: tuple[int, int], patch: tuple[int, int], steps: tuple[int, int], most: int) -> tuple[int, int]:
    """By the largest scale, at most 1, at which there are at most so many patches."""

    def grid(scale: float) -> tuple[int, int]:
        rows, columns = (
            max(math.floor((side * scale - p) / s + 1.5), 1) for side, p, s in zip(size, patch, steps, strict=True)
        )
        return rows, columns

    if math.prod(grid(1.0)) <= most:
        return grid(1.0)
    low, high = 0.0, 1.0
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if math.prod(grid(middle)) <= most else (low, middle)
    return grid(low)


class FitTokens:
    """Scales an image to its native size."""

    def __init__(self, form: ImageFormat, interpolation: str):
        self.form, self.mode = form, v2.InterpolationMode(interpolation)

    def __call__(self, image: Image.Image) -> Image.Image:
        size = native_size(self.form, (image.height, image.width))
        return v2.functional.resize(image, [*size], interpolation=self.mode)


class CropTokens:
    """A random crop, scaled to the native size of the whole image: so the number of tokens is always the same.

    area: the smallest share of the image's area.
    """

    def __init__(self, form: ImageFormat, area: float, interpolations: Sequence[str]):
        self.form, self.area = form, area
        self.modes = [v2.InterpolationMode(name) for name in interpolations]

    def __call__(self, image: Image.Image) -> Image.Image:
        size = native_size(self.form, (image.height, image.width))
        mode = self.modes[int(torch.randint(len(self.modes), ()))]
        ratio = [image.width / image.height * aspect for aspect in ASPECTS]
        return v2.RandomResizedCrop(size, (self.area, 1.0), ratio, interpolation=mode)(image)
