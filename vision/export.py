"""Write a trained model as ONNX or as torch.export's archive: `python -m vision.export RUN FILE`."""

import sys
from pathlib import Path
from typing import Annotated

import torch
import tyro
from torch.export import Dim

from core import pair, to_dict
from core.config import configclass
from core.experiments import predict_command
from core.models.export import check_target, export_model, target_metadata

from .pretrained import load_model


@configclass
class Arguments:
    """A file that runs without this library: it takes preprocessed images, any number of them, and gives logits."""

    run: Annotated[Path, tyro.conf.Positional]
    """A run's directory, one written by save_pretrained (ours or another library's), or hf-hub:NAME."""
    file: Annotated[Path, tyro.conf.Positional]
    """model.onnx, or model.pt2 for torch.export's archive."""


def export(arguments: Arguments) -> None:
    check_target(arguments.file)
    model = load_model(arguments.run)
    config = model.config
    size = pair(config.image_size)
    metadata = {**target_metadata(config), "image_size": size, "preprocess": to_dict(config.preprocess)}
    examples = [{"images": torch.randn(batch, config.channels, *size)} for batch in (3, 1, 5)]
    axes = {"images": {0: Dim("batch")}}
    output = "logits" if config.classes else "features"
    print(export_model(model, examples, axes, output, metadata, arguments.file))
    if config.max_tokens is not None:
        print(
            f"warning: the model takes images of any size, but the file those of {size[0]} x {size[1]} pixels alone: "
            "resize images to that.",
            file=sys.stderr,
        )


if __name__ == "__main__":
    predict_command("python -m vision.export", Arguments, export, to_the_end=True)
