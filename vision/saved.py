"""The model that a command is given."""

from pathlib import Path

from core.models.hub import is_stock

from .model import ViT


def load_model(source: Path) -> ViT:
    """The model of a run, or one of another library: in a directory, or on the hub (hf-hub:NAME)."""
    if not is_stock(source):
        return ViT.from_run(source, "vision")
    from .pretrained import load_pretrained  # timm takes a second to import

    return load_pretrained(str(source))
