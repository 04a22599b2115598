"""The engine: one training loop for every modality."""

from .config import TrainConfig
from .loop import Fit, fit
from .task import Task

__all__ = ["Fit", "Task", "TrainConfig", "fit"]
