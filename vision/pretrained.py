"""Models of a run or of another library, to use or to start from, and what they take of an image file."""

from pathlib import Path

from jaxtyping import Float
from torch import Tensor

from core.models.hub import HUB, hub_settings, is_stock, load_start, read_settings

from .augment import eval_transform
from .decoding import image_mode, read_image
from .model import ViT


def load_pretrained(source: str) -> ViT:
    """A model to start from: of a run, of a directory written by save_pretrained (ours or transformers') or by timm, of
    either library on the hub (hf-hub:NAME), or of timm by its name."""
    return load_start(source, "vision", ViT, _from_either)


def _from_either(source: str) -> ViT:
    """timm's config.json names an architecture, that of transformers a type of model."""
    if Path(source).is_dir():
        settings = read_settings(Path(source) / "config.json")
    else:
        settings = hub_settings(source) if source.startswith(HUB) else {}
    if "model_type" in settings and "architecture" not in settings:
        from .hf import from_hf

        return from_hf(source)
    from .timm_models import from_timm  # timm takes a second to import

    return from_timm(source)


def load_model(source: Path | str) -> ViT:
    """The model of a run, or one of another library: in a directory, or on the hub (hf-hub:NAME)."""
    return load_pretrained(str(source)) if is_stock(source) else ViT.from_run(source, "vision")


def read(path: Path | str, model: ViT) -> Float[Tensor, "c h w"]:
    """An image, prepared as the model was trained: its size, crop and normalisation."""
    return eval_transform(model.config.image_format)(read_image(Path(path), image_mode(model.config.channels)))
