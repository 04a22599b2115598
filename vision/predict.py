"""Classify image files: `python -m vision.predict RUN IMAGE...`."""

from pathlib import Path
from typing import Annotated

import torch
import tyro

from core import UserError
from core.config import Count, configclass
from core.hub import check_modality
from core.training import predict_command
from core.training.report import attention_map, figure, save_figure

from .data import eval_transform, image_mode, read_image
from .model import ViT
from .pictures import draw_image, draw_overlay, to_picture


@configclass
class Arguments:
    """Top classes of each image with their probabilities, and a picture of where the model looked."""

    run: Annotated[Path, tyro.conf.Positional]
    """A run's directory, or a directory written by save_pretrained."""
    images: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Image files."""
    top: Count = 3
    """How many classes to show."""
    out: Path | None = None
    """Where the pictures go; RUN/predictions by default."""


def predict(arguments: Arguments) -> None:
    if not arguments.images:
        raise UserError("Name at least one image file after the run's directory.")
    check_modality(arguments.run, "vision")
    model = ViT.from_run(arguments.run)
    config = model.config
    if not config.classes:
        raise UserError(f"The model in {arguments.run} has no classes to tell apart: train it on some with --init.")
    transform, mode = eval_transform(config), image_mode(config.channels)
    inputs = [transform(read_image(path, mode)) for path in arguments.images]  # all are read before any is shown
    out = arguments.out or arguments.run / "predictions"
    out.mkdir(parents=True, exist_ok=True)
    labels = config.labels or tuple(map(str, range(config.classes)))
    for number, (path, image) in enumerate(zip(arguments.images, inputs, strict=True)):
        with torch.no_grad():
            chances, classes = model(image[None]).softmax(dim=-1)[0].topk(min(arguments.top, len(labels)))
        guesses = [f"{labels[c]} {p:.1%}" for p, c in zip(chances, classes, strict=True)]
        repeated = [other.stem for other in arguments.images].count(path.stem) > 1
        picture = out / f"{path.stem}{f'-{number + 1}' if repeated else ''}.png"
        fig, axes = figure(6, 3.2, columns=2)
        shown = to_picture(image, config.preprocess)
        draw_image(axes[0, 0], shown, guesses[0])
        draw_overlay(axes[0, 1], shown, attention_map(model, image[None])[0])
        save_figure(fig, picture)
        print(f"{path}: {', '.join(guesses)} (attention: {picture})")


if __name__ == "__main__":
    predict_command("python -m vision.predict", Arguments, predict)
