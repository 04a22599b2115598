"""A trained model of clips as the teacher of another."""

from dataclasses import replace
from typing import Any, TypeVar

from torch import nn

from core import UserError
from core.objectives.distillation import with_classes

from .model import AST
from .pretrained import load_pretrained

C = TypeVar("C", bound=Any)
CUTTING = ("sample_rate", "trim", "features", "n_mels", "max_frames", "mask_padding", "patch_size", "stride")
"""The settings that decide which tokens there are of a clip."""


def load_teacher(source: str | None, config: Any) -> nn.Module | None:
    """The teacher of a model of this config, with the same classes; None for none."""
    if source is None:
        return None
    model = load_pretrained(source)
    _check_reading(source, model, config)
    if model.config.multilabel:
        raise UserError(f"--distill.teacher {source} predicts any number of classes: name one that predicts one.")
    return with_classes(model, source, model.config.labels, config.labels)


def load_token_teacher(source: str | None, config: C, default: C | None) -> tuple[AST | None, C]:
    """The model whose tokens a model of this config is to learn (None for none), and that config.

    default: the config without options. What cuts clips into tokens, and is as there, becomes the teacher's; None: the
    model is trained already, and keeps its config.
    """
    if source is None:
        return None, config
    model = load_pretrained(source)
    if not isinstance(model, AST):
        raise UserError(f"--distill.teacher {source} makes no tokens of patches of a spectrogram: name an AST.")
    if default is not None:
        unchanged = [name for name in CUTTING if getattr(config, name) == getattr(default, name)]
        config = replace(config, **{name: getattr(model.config, name) for name in unchanged})
    _check_reading(source, model, config)
    return model, config


def _check_reading(source: str, model: Any, config: Any) -> None:
    """The teacher is given the clips as they are read for the model."""
    if model.config.sample_rate != config.sample_rate:
        raise UserError(
            f"--distill.teacher {source} takes clips at {model.config.sample_rate:,} Hz, and the model at "
            f"{config.sample_rate:,} Hz: set --model.sample-rate."
        )
    if model.config.trim != config.trim:
        raise UserError(
            f"--distill.teacher {source} reads clips with a trim of {model.config.trim}, and the model with "
            f"{config.trim}: set --model.trim."
        )
