"""Models to start from: of a run, or of another library."""

from core.models.hub import load_start

from .hf import from_hf
from .saved import Model, kind_of


def load_pretrained(source: str) -> Model:
    """A model to start from: of a run, of a directory written by save_pretrained (ours or transformers'), of
    transformers on the hub, or whatever else from_hf takes."""
    return load_start(source, "audio", kind_of(source), from_hf, ("model_type", "architecture"))
