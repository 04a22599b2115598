"""Which of our models a directory holds."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import tyro
from pydantic import Discriminator, Tag

from core.models.hub import model_folder, read_settings

from .model import AST, ASTConfig
from .waveform import WaveformConfig, WaveformModel

Model = AST | WaveformModel


def kind_of(source: Path | str) -> type[Model]:
    """The class of the model in the directory of a run, or in one that save_pretrained wrote."""
    is_waveform = _tag(read_settings(model_folder(Path(source)) / "config.json")) == WaveformConfig.__name__
    return WaveformModel if is_waveform else AST


def _tag(config: Any) -> str:
    """The class of a config, which may be as it is in JSON."""
    if isinstance(config, Mapping):
        return (WaveformConfig if "conv_dims" in config else ASTConfig).__name__
    return type(config).__name__


ModelConfig = Annotated[
    Annotated[ASTConfig, Tag("ASTConfig")] | Annotated[WaveformConfig, Tag("WaveformConfig")],
    Discriminator(_tag),
    tyro.conf.AvoidSubcommands,
]
"""Of any of our models; a command line has the options of the default's class."""
