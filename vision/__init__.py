"""Images: patches in, classes out, on the shared core."""

from core.startup import import_quickly

import_quickly(__name__)

from .model import Preprocess, ViT, ViTConfig

__all__ = ["Preprocess", "ViT", "ViTConfig", "from_hf", "from_timm", "masked_autoencoder_from_hf"]


def __getattr__(name):
    # timm takes a second to import: only those who load stock checkpoints wait for it.
    if name == "from_timm":
        from .timm_models import from_timm

        return from_timm
    if name == "from_hf":
        from .hf import from_hf

        return from_hf
    if name == "masked_autoencoder_from_hf":
        from .hf_mae import masked_autoencoder_from_hf

        return masked_autoencoder_from_hf
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
