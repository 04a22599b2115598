"""A trained model of texts as the teacher of another."""

import json
from typing import Any

from torch import nn

from core import UserError
from core.objectives.distillation import with_classes

from .model import TextConfig, TextEncoder
from .pretrained import load_pretrained
from .tokenizer import Tokenizer


def load_teacher(source: str | None, config: TextConfig, tokenizer: Tokenizer) -> nn.Module | None:
    """The teacher of a model of this config, with the same classes and token ids; None for none."""
    if source is None:
        return None
    model = _load(source, config, tokenizer)
    if model.config.head != "classes" or model.config.multilabel:
        raise UserError(f"--distill.teacher {source} does not predict one class for each text: name a model that does.")
    return with_classes(model, source, model.config.labels, config.labels)


def load_token_teacher(source: str | None, config: TextConfig, tokenizer: Tokenizer) -> TextEncoder | None:
    """The model whose tokens a model of this config is to learn; None for none."""
    return None if source is None else _load(source, config, tokenizer)


def _load(source: str, config: TextConfig, tokenizer: Tokenizer) -> TextEncoder:
    model, theirs = load_pretrained(source)
    teacher = f"--distill.teacher {source}"
    if _meaning(theirs) != _meaning(tokenizer):
        raise UserError(
            f"{teacher} has another tokenizer, so that it would read other texts: give --data.tokenizer.path {source}, "
            "or start from a model of its family (--init)."
        )
    if model.config.max_length < config.max_length:
        raise UserError(
            f"{teacher} takes {model.config.max_length} tokens, and the model {config.max_length}: choose a "
            f"--model.max-length of {model.config.max_length} at most."
        )
    if config.pairs and (model.config.segments > 1) != (config.segments > 1):
        raise UserError(f"{teacher} does not distinguish the two texts of a pair as the model does: name another.")
    return model


def _meaning(tokenizer: Tokenizer) -> Any:
    """What decides on the token ids of a text."""
    settings = json.loads(tokenizer.backend.to_str())
    left_out = ("truncation", "padding", "post_processor")  # the frame is compared by its ids
    return {key: value for key, value in settings.items() if key not in left_out}, tokenizer.before, tokenizer.after
