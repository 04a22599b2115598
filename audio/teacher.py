"""A trained classifier of clips as the teacher of another."""

from typing import Any

from torch import nn

from core import UserError
from core.objectives.distillation import with_classes

from .pretrained import load_pretrained


def load_teacher(source: str | None, config: Any) -> nn.Module | None:
    """The teacher of a model of this config, with the same classes; None for none."""
    if source is None:
        return None
    model = load_pretrained(source)
    if model.config.sample_rate != config.sample_rate:
        raise UserError(
            f"--distill.teacher {source} takes clips at {model.config.sample_rate:,} Hz, and the model at "
            f"{config.sample_rate:,} Hz: set --model.sample-rate."
        )
    if model.config.multilabel:
        raise UserError(f"--distill.teacher {source} predicts any number of classes: name one that predicts one.")
    return with_classes(model, source, model.config.labels, config.labels)
