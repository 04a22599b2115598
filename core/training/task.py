"""What the engine trains: a model, an objective, and data."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from ..objectives.objective import Batch, Objective
from .growth import Growth

Data = Any  # whatever has a length and elements: a data set of torch, whose type promises no length, or a list


@dataclass
class Task:
    model: nn.Module
    objective: Objective
    train: Data
    test: Data
    """Evaluated once, after the last step."""
    collate: Callable[[list], Batch]
    validation: Data | None = None
    """Evaluated during training: it decides which checkpoint is the best."""
    mix: Callable[[Batch], Batch] | None = None
    """Changes a whole training batch on the device (mixup)."""
    growth: Growth = field(default_factory=Growth)
    """Makes the samples of the first steps smaller."""
    measure: Callable[[nn.Module], dict[str, float]] | None = None
    """Further figures of the model, by the names that they have in metrics.jsonl: taken before the first step, and
    whenever the validation set is evaluated. Every process takes them, all of the same model and the same data."""
    after_step: Callable[[Any, int], None] = lambda model, step: None
    """Called after the weights were changed, with the model and the number of steps done (a teacher follows)."""
    in_memory: bool = False
    """Whether the samples are in memory, so that loading them in worker processes gains nothing."""
