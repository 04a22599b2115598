"""Transforms of images: random changes in training, and the fit to a model's size and normalisation."""

import math
import random
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import numpy as np
import torch
from annotated_types import Interval
from jaxtyping import Float, Int
from PIL import Image
from pydantic import Strict
from torch import Tensor
from torchvision.transforms import v2

from core import Batch, UserError, pair
from core.config import BelowOne, Size, UpToOne, ZeroToOne, configclass

from .model import ImageFormat, Preprocess
from .native import CropTokens, FitTokens

TO_FLOAT = [v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True)]
Degrees = Annotated[float, Strict(), Interval(ge=0, le=180)]
Shear = Annotated[float, Strict(), Interval(ge=0, lt=90)]
Alpha = Annotated[float, Strict(), Interval(ge=0, le=1000)]


@configclass
class Augment:
    """Random changes of a training image; all off by default."""

    rotate: Degrees = 0.0
    """Degrees, to either side."""
    shift: ZeroToOne = 0.0
    """Share of the side, in any direction."""
    zoom: BelowOne = 0.0
    """Share of the size, up or down."""
    shear: Shear = 0.0
    """Degrees, to either side."""
    crop: UpToOne = 1.0
    """Smallest area of a random crop, resized to the full size (0.08 for ImageNet); 1 for none. With images of native
    size a crop has about its image's aspect ratio."""
    flip: bool = False
    """Mirror left to right with probability 0.5."""
    policy: str = ""
    """timm's RandAugment or AutoAugment policy, such as rand-m9-mstd0.5."""
    erase: ZeroToOne = 0.0
    """Probability that a rectangle is erased."""
    mixup: Alpha = 0.0
    """Alpha of mixup; 0 for none."""
    cutmix: Alpha = 0.0
    """Alpha of cutmix; with mixup too, each batch takes one of them."""
    start_size: Size | None = None
    """Progressive resizing: the first steps have images of so many pixels along the shorter side, which cost less. They
    grow by a patch at a time to the model's image size, each size for an equal number of steps. None: all steps have
    the full size."""

    @property
    def is_affine(self) -> bool:
        """Whether each image is changed by nothing but an affine map."""
        return not (self.crop < 1 or self.policy or self.erase)


def affine(
    images: Float[Tensor, "n c h w"],
    angle: Float[np.ndarray, "n"],
    shear: Sequence[Float[np.ndarray, "n"]],
    shift: Float[np.ndarray, "2 n"],
    zoom: Float[np.ndarray, "n"],
) -> Float[Tensor, "n c h w"]:
    """Each image under an affine map of its own about its centre, black where it is not covered.

    angle, shear (along x, along y): radians. shift (x, y): pixels. The same as torchvision's `affine` of PIL images,
    which takes the same numbers, but one map at a time. The result of an image does not depend on the other images.
    """
    # The inverse map of each pixel's position, from the centre, in half sides.
    (rows, columns), (shear_x, shear_y) = images.shape[2:], np.tan(shear)
    xx, xy, yx, yy = np.cos(angle), np.sin(angle), -np.sin(angle), np.cos(angle)
    yx, yy = yx + shear_y * xx, yy + shear_y * xy
    xx, xy = xx + shear_x * yx, xy + shear_x * yy
    x = (np.arange(columns) - (columns - 1) / 2 - shift[0][:, None])[:, None, :]
    y = (np.arange(rows) - (rows - 1) / 2 - shift[1][:, None])[:, :, None]
    grid = np.empty((len(images), rows, columns, 2), dtype=np.float32)
    for axis, (along_x, along_y, side) in enumerate(((xx, xy, columns), (yx, yy, rows))):
        along_x, along_y = (v[:, None, None] / (zoom[:, None, None] * side / 2) for v in (along_x, along_y))
        np.add(along_x * x, along_y * y, out=grid[..., axis], casting="same_kind")
    inside = torch.from_numpy((np.abs(grid) <= 1).all(axis=-1))[:, None]
    positions = torch.from_numpy(grid).to(images.dtype)
    return torch.nn.functional.grid_sample(images, positions, padding_mode="border", align_corners=False) * inside


def shifted(images: Float[Tensor, "n c h w"], shift: Int[np.ndarray, "2 n"]) -> Float[Tensor, "n c h w"]:
    """Each image moved by whole pixels of its own, black where it is not covered. shift: (x, y)."""
    rows, columns = images.shape[2:]
    across, down = shift.clip([[-columns], [-rows]], [[columns], [rows]])
    border = torch.nn.functional.pad(images, (columns, columns, rows, rows)).movedim(1, -1)
    number = np.arange(len(images))[:, None, None]
    y = (np.arange(rows) + rows - down[:, None])[:, :, None]
    x = (np.arange(columns) + columns - across[:, None])[:, None, :]
    return border[number, y, x].movedim(-1, 1)


def eval_transform(form: ImageFormat) -> Callable[[Image.Image], Float[Tensor, "c h w"]]:
    """Resize, crop the centre, normalise: to the pixel what timm's create_transform makes."""
    return v2.Compose([*resize(form, form.preprocess.crop), to_float, Normalise(form.preprocess)])


def to_float(image: Image.Image) -> Float[Tensor, "c h w"]:
    """To the bit what `TO_FLOAT` makes, without the dispatch of transforms, which small images feel."""
    pixels = torch.from_numpy(np.array(image))
    channels = pixels.permute(2, 0, 1) if pixels.ndim == 3 else pixels[None]
    return channels.to(torch.float32, memory_format=torch.contiguous_format).mul_(1 / 255)


def train_transform(form: ImageFormat, augment: Augment) -> Callable[[Image.Image], Float[Tensor, "c h w"]]:
    """Random changes, drawn from the global random state, then the model's size and normalisation."""
    steps: list[Callable] = []
    if augment.crop < 1:
        name, size, scale = form.preprocess.interpolation, pair(form.size), (augment.crop, 1.0)
        names = ("bilinear", "bicubic") if name == "random" else (name,)
        if form.max_tokens is not None:
            steps.append(CropTokens(form, augment.crop, names))
        else:
            modes = [v2.InterpolationMode(mode) for mode in names]
            crops = [v2.RandomResizedCrop(size, scale, interpolation=mode) for mode in modes]
            steps.append(v2.RandomChoice(crops) if name == "random" else crops[0])
    else:
        steps += resize(form, crop=1.0)
    if augment.flip:
        steps.append(v2.RandomHorizontalFlip())
    if augment.policy:
        steps += _policy(augment.policy, form)
    if augment.rotate or augment.shift or augment.zoom or augment.shear:
        steps.append(
            v2.RandomAffine(
                augment.rotate,  # pyright: ignore[reportArgumentType]
                translate=(augment.shift, augment.shift),
                scale=(1 - augment.zoom, 1 + augment.zoom),
                shear=(-augment.shear, augment.shear, -augment.shear, augment.shear),
                interpolation=v2.InterpolationMode.BILINEAR,
            )
        )
    steps += [*TO_FLOAT, Normalise(form.preprocess)]
    if augment.erase:
        steps.append(v2.RandomErasing(augment.erase, value="random"))  # pyright: ignore[reportArgumentType]
    return v2.Compose(steps)


def make_mix(augment: Augment, classes: int) -> Callable[[Batch], Batch] | None:
    """Mixup and cutmix of whole batches; targets become probabilities."""
    choices = []
    if augment.mixup:
        choices.append(v2.MixUp(alpha=augment.mixup, num_classes=classes))
    if augment.cutmix:
        choices.append(v2.CutMix(alpha=augment.cutmix, num_classes=classes))
    if not choices:
        return None

    def mix(batch: Batch) -> Batch:
        images, targets = random.choice(choices)(batch.inputs[0], batch.targets)
        return Batch((images,), targets)

    return mix


def _policy(name: str, form: ImageFormat) -> list[Callable[[Image.Image], Image.Image]]:
    from timm.data.auto_augment import auto_augment_transform, rand_augment_transform

    if form.channels == 4:
        raise UserError(f"--data.augment.policy {name} is for images of 1 or 3 channels, not 4: leave it empty.")
    make = rand_augment_transform if name.startswith("rand") else auto_augment_transform
    try:
        change = make(name, {"translate_const": round(min(pair(form.size)) * 0.45)})
    except (AssertionError, ValueError, KeyError):
        raise UserError(f"--data.augment.policy {name!r} is not one that timm knows.") from None
    # It works on colours; grey stays grey.
    return [change] if form.channels == 3 else [_Mode("RGB"), change, _Mode("L")]


def resize(form: ImageFormat, crop: float | int) -> list[Callable]:
    """From an image of any size to one of the model's, or to its native size. crop: as Preprocess has it."""
    preprocess, size = form.preprocess, pair(form.size)
    interpolation = "bilinear" if preprocess.interpolation == "random" else preprocess.interpolation
    if form.max_tokens is not None:
        return [FitTokens(form, interpolation)]
    resized = [max(math.floor(side / crop), 1) for side in size]
    crop_mode = preprocess.crop_mode or ("center" if size[0] == size[1] else "squash")
    if crop_mode == "squash":
        return [v2.Resize(resized, v2.InterpolationMode(interpolation)), v2.CenterCrop(size)]
    if crop_mode == "center" and resized[0] == resized[1]:
        return [v2.Resize(resized[0], v2.InterpolationMode(interpolation)), v2.CenterCrop(size)]
    from timm.data.transforms import CenterCropOrPad, ResizeKeepRatio  # timm takes a second to import

    if crop_mode == "center":
        return [ResizeKeepRatio(resized, interpolation=interpolation), v2.CenterCrop(size)]
    fill: Any = [round(255 * mean) for mean in preprocess.mean] * (form.channels // len(preprocess.mean))
    return [ResizeKeepRatio(resized, longest=1.0, interpolation=interpolation), CenterCropOrPad([*size], fill=fill)]


class _Mode:
    """Converts an image to a mode."""

    def __init__(self, mode: str):
        self.mode = mode

    def __call__(self, image: Image.Image) -> Image.Image:
        return image.convert(self.mode)


class Normalise:
    """As v2.Normalize, but in place, and one number serves any number of channels."""

    def __init__(self, preprocess: Preprocess):
        self.mean, self.std = (torch.tensor(value).view(-1, 1, 1) for value in (preprocess.mean, preprocess.std))

    def __call__(self, image: Tensor) -> Tensor:
        return image.sub_(self.mean).div_(self.std)
