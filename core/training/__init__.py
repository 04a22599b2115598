"""The engine: one training loop for every modality."""

from .config import TrainConfig
from .loop import fit

__all__ = ["TrainConfig", "fit"]
