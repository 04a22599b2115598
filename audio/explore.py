"""A page on which one points at sounds to see what they attend to: `python -m audio.explore MODEL CLIP...`."""

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
    """Write a page on which one points at stretches of sound, sees what they attend to, and hears them."""

    clips: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Audio files: wav, flac, ogg, mp3 and others."""


def explore(arguments: Arguments) -> None:
    if not arguments.clips:
        raise UserError("Name at least one audio file after the model.")
    models = compared(arguments, load_pretrained)
    looks = [
        [look_at(name, model, read(path, model), arguments.target) for name, model in models]
        for path in arguments.clips
    ]
    names = [path.name for path in arguments.clips]
    make_page(arguments, names, looks, "clips", arguments.clips[0])


if __name__ == "__main__":
    predict_command("python -m audio.explore", Arguments, explore)
