"""Which of our models a directory holds."""

from pathlib import Path

from core.models.hub import model_folder, read_settings

from .model import AST
from .waveform import WaveformModel

Model = AST | WaveformModel


def kind_of(source: Path | str) -> type[Model]:
    """The class of the model in the directory of a run, or in one that save_pretrained wrote."""
    return WaveformModel if "conv_dims" in read_settings(model_folder(Path(source)) / "config.json") else AST
