"""A page on which one points at patches to see what they attend to: `python -m vision.explore MODEL IMAGE...`."""

from pathlib import Path
from typing import Annotated

import tyro

from core import UserError
from core.config import configclass
from core.experiments import predict_command
from core.experiments.exploring import ExploreArguments, compared, make_page

from .looks import look_at
from .pretrained import load_pretrained, read


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


if __name__ == "__main__":
    predict_command("python -m vision.explore", Arguments, explore)
