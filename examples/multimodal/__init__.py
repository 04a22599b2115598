"""Image, audio and word of the same thing, by one encoder: built from what core, vision, audio and text export."""

from .model import ContrastiveModel, FusedModel, MultimodalConfig
from .things import MODALITIES, Things, join

__all__ = ["MODALITIES", "ContrastiveModel", "FusedModel", "MultimodalConfig", "Things", "join"]
