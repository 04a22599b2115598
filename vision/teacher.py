"""A trained model of images as the teacher of another."""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from core import Encoder, Tokens, UserError, pair, patch_grid
from core.objectives.distillation import with_classes

from .augment import Normalise
from .model import Images, ViT, ViTConfig
from .pretrained import load_pretrained


def load_teacher(source: str | None, config: ViTConfig) -> nn.Module | None:
    """The teacher of a model of this config, with the same classes; None for none."""
    if source is None:
        return None
    model = _load(source, config)
    if model.config.multilabel:
        raise UserError(f"--distill.teacher {source} predicts any number of classes: name one that predicts one.")
    return with_classes(Teacher(model, config), source, model.config.labels, config.labels)


def load_token_teacher(source: str | None, config: ViTConfig) -> "TokenTeacher | None":
    """The model whose tokens a model of this config is to learn; None for none."""
    return None if source is None else TokenTeacher(_load(source, config), config)


def _load(source: str, config: ViTConfig) -> ViT:
    model = load_pretrained(source)
    if model.config.channels != config.channels:
        raise UserError(
            f"--distill.teacher {source} takes images of {model.config.channels} channels, and the model of "
            f"{config.channels}: set --model.channels."
        )
    return model


class Teacher(nn.Module):
    """Takes images as a model of `config` gets them, and brings them to the normalisation and the size of its own."""

    def __init__(self, model: ViT, config: ViTConfig):
        super().__init__()
        self.model, self.form = model, config.image_format
        theirs, ours = model.config.preprocess, config.preprocess
        self.same = (theirs.mean, theirs.std) == (ours.mean, ours.std)
        self.from_normalised, self.normalise = Normalise(ours), Normalise(theirs)

    def forward(self, images: Images) -> Float[Tensor, "b classes"]:
        if not isinstance(images, Tensor):
            return self.model([self._normalised(image) for image in images])
        size = pair(self.model.config.image_size)
        if tuple(images.shape[-2:]) != tuple(size):
            images = F.interpolate(images, size, mode="bicubic", antialias=True)
        return self.model(self._normalised(images))

    def _normalised(self, images: Float[Tensor, "*b c h w"]) -> Float[Tensor, "*b c h w"]:
        if self.same:
            return images
        mean, std = (value.to(images) for value in (self.from_normalised.mean, self.from_normalised.std))
        pixels = images * std + mean
        return (pixels - self.normalise.mean.to(images)) / self.normalise.std.to(images)


class TokenTeacher(Teacher):
    """Takes images as a model of `config` gets them, and makes as many tokens of them as that model does."""

    @property
    def encoder(self) -> Encoder:
        return self.model.encoder

    def tokens(self, images: Images) -> Tokens:
        return self.model.tokens(self._fitted(images) if isinstance(images, Tensor) else [*map(self._fitted, images)])

    def _fitted(self, images: Float[Tensor, "*b c h w"]) -> Float[Tensor, "*b c rows columns"]:
        """At the size that has as many patches of the teacher's as the images have of the model's."""
        own = self.model.config.image_format
        rows, columns = images.shape[-2:]
        grid = patch_grid((rows, columns), self.form.patch_size, self.form.stride)
        parts = zip(grid, own.steps, pair(own.patch_size), strict=True)
        size = [(count - 1) * step + patch for count, step, patch in parts]
        images = self._normalised(images)
        if [rows, columns] == size:
            return images
        batch = images if images.ndim == 4 else images[None]
        return F.interpolate(batch, size, mode="bicubic", antialias=True).view(*images.shape[:-2], *size)
