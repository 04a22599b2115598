"""Models to start from: of a run, or of another library."""

from pathlib import Path

from core.models.hub import is_stock, load_start

from .hf import from_hf
from .saved import Model, kind_of


def load_pretrained(source: str) -> Model:
    """A model to start from: of a run, of a directory written by save_pretrained (ours or transformers'), of
    transformers on the hub, or whatever else from_hf takes."""
    return load_start(source, "audio", kind_of(source), from_hf)


def load_model(source: Path) -> Model:
    """The model that a command is given: of a run, or one of another library: in a directory, in a file of its authors,
    or on the hub (hf-hub:NAME)."""
    if is_stock(source) or source.is_file():
        return load_pretrained(str(source))
    return kind_of(source).from_run(source, "audio")
