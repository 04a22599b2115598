"""What a model attends to in an image, for the attention explorer."""

from jaxtyping import Float
from torch import Tensor

from core import pair, patch_grid
from core.experiments.exploring import predicted
from core.explore import Look, Marks, Part, Picture, look, png

from .model import ImageFormat, ViT
from .plots import to_pixels


def look_at(name: str, model: ViT, image: Float[Tensor, "c h w"], target: str | None = None) -> Look:
    """What a model attends to in an image; target: the class that gradients are of."""
    config = model.config
    return look(
        name,
        lambda: model(image[None]),
        parts(image, config.image_format, config.class_token),
        depth=config.encoder.depth,
        pool=config.pool,
        predictions=predicted(config, model.probabilities, target),
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
