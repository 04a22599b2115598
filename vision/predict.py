"""Classify or embed image files: `python -m vision.predict RUN IMAGE...`."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated

import torch
import tyro
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from core import UserError
from core.attention.maps import attention_map
from core.config import configclass
from core.data.manifest import check_sample
from core.experiments import predict_command
from core.experiments.figures import figure, save_figure
from core.experiments.inputs import Input, file_inputs
from core.experiments.outputs import class_form, headline
from core.experiments.prediction import PredictOptions, predict_inputs
from core.experiments.predictor import Predictor
from core.experiments.results import Row

from .augment import eval_transform
from .datasets import SUFFIXES
from .decoding import image_mode, read_image
from .model import ViT
from .plots import draw_image, draw_overlay, to_pixels
from .pretrained import load_model


@configclass
class Arguments(PredictOptions):
    """Print the most probable classes of each image, or a vector for each, or write them to a table (--out)."""

    run: Annotated[Path, tyro.conf.Positional]
    """A run's directory, one written by save_pretrained (ours or another library's), or hf-hub:NAME."""
    inputs: Annotated[tuple[Path, ...], tyro.conf.Positional] = ()
    """Image files, folders of them, and manifests with a column `path`; without any, standard input is read, one path
    a line."""


def predict(arguments: Arguments) -> None:
    predictor = predictor_of(load_model(arguments.run), arguments)
    predict_inputs(predictor, file_inputs(arguments.inputs, SUFFIXES, "image"), arguments)


def predictor_of(model: ViT, arguments: Arguments) -> Predictor:
    config = model.config
    form, embeds = class_form(arguments.run, arguments, config)
    mode = image_mode(config.channels)
    return Predictor(
        run=arguments.run,
        model=model,
        read=partial(read, transform=eval_transform(config.image_format), mode=mode),
        compute=partial(outputs, model, embeds),
        form=form,
        plot=None if embeds else partial(plot, model),
    )


def read(entry: Input, transform: Callable[[Image.Image], Tensor], mode: str) -> Float[Tensor, "c h w"]:
    try:
        return transform(read_image(entry.source, mode))
    except UserError:
        check_sample(entry.source, "image")  # an empty file has a better reason
        raise


def outputs(model: ViT, embeds: bool, images: list[Float[Tensor, "c _h _w"]]) -> Float[Tensor, "b outputs"]:
    """Probabilities (or a number, standardised), or features. Images of several sizes are a ragged batch."""
    batch = torch.stack(images) if len({image.shape for image in images}) == 1 else images
    return model.features(batch) if embeds else model.predictions(model(batch))


def plot(model: ViT, image: Float[Tensor, "c h w"], entry: Input, row: Row, path: Path) -> None:
    """Plot the image under what is predicted of it, and the model's attention map beside it."""
    fig, axes = figure(6, 3.2, columns=2)
    pixels = to_pixels(image, model.config.preprocess)
    draw_image(axes[0, 0], pixels, headline(row))
    draw_overlay(axes[0, 1], pixels, attention_map(model, image[None])[0])
    save_figure(fig, path)


if __name__ == "__main__":
    predict_command("python -m vision.predict", Arguments, predict)
