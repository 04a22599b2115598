"""What the engine trains: a model, an objective, and data."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import nn
from typing_extensions import get_protocol_members

from ..errors import UserError
from ..objectives.classification import Classification
from ..objectives.objective import Batch, Objective
from .config import TrainConfig
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

    def check(self, config: TrainConfig) -> None:
        """Raise a UserError if this cannot be trained as configured."""
        if lacks := sorted(name for name in get_protocol_members(Objective) if not hasattr(self.objective, name)):
            raise UserError(f"{type(self.objective).__name__} is no objective: it lacks {', '.join(lacks)}.")
        for name in ("train", "validation", "test"):
            data = getattr(self, name)
            if data is not None and len(data) == 0:
                raise UserError(f"The {name} data are empty: each split needs at least one sample.")
        if config.patience is not None and self.validation is None:
            raise UserError("--train.patience needs a validation set, which this task does not have: leave it out.")
        if not any(parameter.requires_grad for parameter in self.model.parameters()):
            raise UserError("The model has no parameter to train: it has none, or all are frozen.")
        if isinstance(self.objective, Classification):
            asked = {
                "label_smoothing": (config.label_smoothing, self.objective.label_smoothing),
                "class_loss": (config.class_loss == "bce", self.objective.binary),
                "class_balance": (config.class_balance == "weights", self.objective.weights is not None),
            }
            for name, (wanted, given) in asked.items():
                if wanted and wanted != given:
                    raise UserError(
                        f"TrainConfig.{name} is carried out by the objective, which does not have it: give it to "
                        "Classification(label_smoothing=..., binary=..., weights=...), too."
                    )
