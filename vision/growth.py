"""Training images that start small and grow to the model's size (progressive resizing)."""

import torch.nn.functional as F

from core import Batch, UserError, pair
from core.training.growth import Growth

from .model import ImageFormat

OPTION = "--data.augment.start-size"


def make_growth(form: ImageFormat, start_size: int | None) -> Growth:
    """start_size: pixels along the shorter side at the beginning; None: images have the full size from the start.

    Sides differ from the full ones by whole patches, so that patches fit as they do at the full size.
    """
    if start_size is None:
        return Growth()
    if form.max_tokens is not None:
        raise UserError(f"{OPTION} is for images of one size: leave it out for images of native size.")
    full, patch = pair(form.size), pair(form.patch_size)
    short = 0 if full[0] <= full[1] else 1
    fewer = (full[short] - start_size) // form.steps[short]
    if start_size < patch[short] or fewer < 1:
        raise UserError(
            f"{OPTION} {start_size} must be at least {patch[short]}, the pixels of a patch, and at most "
            f"{full[short] - form.steps[short]}: the model's images have {full[short]}."
        )
    return Growth([_smaller(form, short, count) for count in range(fewer, -1, -1)], resized)


def resized(batch: Batch, size: tuple[int, int]) -> Batch:
    images = batch.inputs[0]
    if images.shape[2:] == size:
        return batch
    return batch._replace(inputs=(F.interpolate(images, size, mode="bilinear", antialias=True),))


def _smaller(form: ImageFormat, short: int, fewer: int) -> tuple[int, int]:
    """Rows and columns of images with so many patches less along the shorter side, and about as many in proportion
    along the other."""
    full, patch, step = pair(form.size), pair(form.patch_size), form.steps
    lost = fewer * step[short] / full[short]  # share of each side

    def side(axis: int) -> int:
        return max(full[axis] - round(lost * full[axis] / step[axis]) * step[axis], patch[axis])

    return side(0), side(1)
