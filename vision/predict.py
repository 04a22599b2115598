"""Classify image files: `python -m vision.predict RUN IMAGE...`."""

from pathlib import Path
from typing import Annotated

import torch
import tyro

from core import UserError
from core.attention.maps import attention_map
from core.config import Count, configclass
from core.experiments import predict_command
from core.experiments.cli import say
from core.experiments.figures import figure, save_figure
from core.experiments.outputs import (
    check_finite,
    load_classifier,
    make_output_folder,
    most_probable,
    output_names,
    shown_classes,
)

from .augment import eval_transform
from .decoding import image_mode, read_image
from .model import ViT
from .plots import draw_image, draw_overlay, to_pixels


@configclass
class Arguments:
    """Print the most probable classes of each image, and plot the attention of the model over it."""

    run: Annotated[Path, tyro.conf.Positional]
    """A run's directory, or a directory written by save_pretrained."""
    images: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Image files."""
    top: Count | None = None
    """How many classes to show; 3 by default, if the model has so many."""
    out: Path | None = None
    """Directory of the plots; RUN/predictions by default. They are named after the images and overwrite no file."""


@torch.no_grad()
def predict(arguments: Arguments) -> None:
    if not arguments.images:
        raise UserError("Name at least one image file after the run's directory.")
    model = load_classifier(ViT, arguments.run, "vision")
    config = model.config
    top = shown_classes(arguments.top, config.classes)
    transform, mode = eval_transform(config.image_format), image_mode(config.channels)
    # All are read and predicted before anything is shown or written.
    inputs = [transform(read_image(path, mode))[None] for path in arguments.images]
    predictions = [model(image).softmax(dim=-1)[0] for image in inputs]
    for probabilities in predictions:
        check_finite(probabilities, arguments.run)
    out = arguments.out or arguments.run / "predictions"
    make_output_folder(out)
    plots = output_names(arguments.images, out, ".png")
    for path, image, probabilities, plot in zip(arguments.images, inputs, predictions, plots, strict=True):
        predicted = most_probable(probabilities, config.labels, top)
        fig, axes = figure(6, 3.2, columns=2)
        pixels = to_pixels(image[0], config.preprocess)
        draw_image(axes[0, 0], pixels, predicted[0])
        draw_overlay(axes[0, 1], pixels, attention_map(model, image)[0])
        save_figure(fig, plot)
        say(f"{path}: {', '.join(predicted)} (attention: {plot})")


if __name__ == "__main__":
    predict_command("python -m vision.predict", Arguments, predict)
