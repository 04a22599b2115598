"""Models to start from: of a run, or of another library."""

from core.models.hub import load_start

from .hf import from_hf
from .model import AST


def load_pretrained(source: str) -> AST:
    """A model to start from: of a run, of a directory written by save_pretrained (ours or transformers'), or of
    transformers on the hub."""
    return load_start(source, "audio", AST, from_hf, ("model_type",))
