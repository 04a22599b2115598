"""The model that a command or a program names, and what it takes of an image file."""

from pathlib import Path

from jaxtyping import Float
from torch import Tensor

from core.models.hub import is_stock

from .augment import eval_transform
from .decoding import image_mode, read_image
from .model import ViT


def load_model(source: Path | str) -> ViT:
    """The model of a run, or one of another library: in a directory, or on the hub (hf-hub:NAME)."""
    if not is_stock(source):
        return ViT.from_run(source, "vision")
    from .pretrained import load_pretrained  # timm takes a second to import

    return load_pretrained(str(source))


def read(path: Path | str, model: ViT) -> Float[Tensor, "c h w"]:
    """An image, prepared as the model was trained: its size, crop and normalisation."""
    return eval_transform(model.config.image_format)(read_image(Path(path), image_mode(model.config.channels)))
