"""A page on which one points at patches to see what they attend to: `python -m vision.explore MODEL IMAGE...`."""

from pathlib import Path
from typing import Annotated

import tyro
from jaxtyping import Float
from torch import Tensor

from core import UserError, pair, patch_grid
from core.config import configclass
from core.experiments import predict_command
from core.experiments.exploring import ExploreArguments, compared, make_page, predicted
from core.explore import Look, Marks, Part, Picture, look, png

from .augment import eval_transform
from .decoding import image_mode, read_image
from .model import ImageFormat, ViT
from .plots import to_pixels
from .pretrained import load_pretrained


@configclass
class Arguments(ExploreArguments):
    """Write a page on which one points at patches of images, and sees what they attend to."""

    images: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Image files."""


def explore(arguments: Arguments) -> None:
    if not arguments.images:
        raise UserError("Name at least one image file after the model.")
    models = compared(arguments, load_pretrained)
    looks = [
        [look_at(name, model, read(path, model), arguments.target) for name, model in models]
        for path in arguments.images
    ]
    names = [path.name for path in arguments.images]
    make_page(arguments, names, looks, "images", arguments.images[0])


def read(path: Path, model: ViT) -> Float[Tensor, "c h w"]:
    """An image, prepared for a model."""
    return eval_transform(model.config.image_format)(read_image(path, image_mode(model.config.channels)))


def look_at(name: str, model: ViT, image: Float[Tensor, "c h w"], target: str | None = None) -> Look:
    """What a model attends to in an image; target: the class that gradients are of."""
    config = model.config
    return look(
        name,
        lambda: model(image[None]),
        parts(image, config.image_format, config.class_token),
        depth=config.encoder.depth,
        pool=config.pool,
        predictions=predicted(config, lambda logits: logits.softmax(dim=-1), target),
    )


def parts(image: Float[Tensor, "c h w"], form: ImageFormat, class_token: bool) -> list[Part]:
    """Where the tokens of an image are."""
    registers = [f"register {number + 1}" for number in range(form.prefix - class_token)]
    names = [*(["class token"] if class_token else []), *registers]
    rows, columns = image.shape[1:]
    grid = patch_grid((rows, columns), form.patch_size, form.stride)
    (high, wide), (down, across) = pair(form.patch_size), form.steps
    picture = Picture(
        image=png(to_pixels(image, form.preprocess)),
        aspect=columns / rows,
        grid=grid,
        origin=(high / 2 / rows, wide / 2 / columns),
        step=(down / rows, across / columns),
        size=(high / rows, wide / columns),
    )
    return [*([Marks(names)] if names else []), picture]


if __name__ == "__main__":
    predict_command("python -m vision.explore", Arguments, explore)
