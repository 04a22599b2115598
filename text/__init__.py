"""Texts: token ids in, classes or masked tokens out, on the shared core."""

from core.startup import import_quickly

import_quickly(__name__)

from .model import TextConfig, TextEncoder
from .tokenizer import Tokenizer

__all__ = ["TextConfig", "TextEncoder", "Tokenizer", "from_hf"]


def __getattr__(name):
    # As in vision and audio: what loads other libraries' checkpoints is imported when asked for.
    if name == "from_hf":
        from .pretrained import from_hf

        return from_hf
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
