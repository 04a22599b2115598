"""What a model predicts of a sample: one class, any number of classes, or a number."""

import math
from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np
from annotated_types import Interval
from jaxtyping import Float
from pydantic import Strict
from torch import Tensor

from ..config import Natural, configclass
from ..errors import UserError

LARGEST = 1e100  # absolute value of a number that is predicted; its square must not overflow


@configclass
class TargetConfig:
    """The options of a model that are about what it predicts."""

    classes: Natural = 0
    """Number of classes; 0 for no head (the model returns features), 1 to predict a number."""
    labels: tuple[str, ...] = ()
    """Names of the classes."""
    multilabel: bool = False
    """Whether a sample may be of several classes: each gets a probability of its own, and they need not sum to 1."""
    target_mean: Annotated[float, Strict(), Interval(ge=-LARGEST, le=LARGEST)] = 0.0
    """Mean of the numbers to be predicted: the output of the model is standardised."""
    target_std: Annotated[float, Strict(), Interval(gt=0, le=LARGEST)] = 1.0
    """Standard deviation of these numbers."""

    @property
    def predicts_number(self) -> bool:
        return self.classes == 1 and not self.multilabel


class Predicts:
    """A model whose config is a `TargetConfig`."""

    config: Any

    def probabilities(self, logits: Float[Tensor, "*b classes"]) -> Float[Tensor, "*b classes"]:
        return logits.sigmoid() if self.config.multilabel else logits.softmax(dim=-1)

    def predictions(self, outputs: Float[Tensor, "*b classes"]) -> Float[Tensor, "*b classes"]:
        """Probabilities; or a number, standardised as it is."""
        return outputs if self.config.predicts_number else self.probabilities(outputs)


def number_head(numbers: Sequence[float]) -> dict[str, Any]:
    """The options of a model that learns to predict these numbers."""
    mean, std = standardised(numbers)
    return {"classes": 1, "labels": (), "multilabel": False, "target_mean": mean, "target_std": std}


def standardised(numbers: Sequence[float]) -> tuple[float, float]:
    """Mean and standard deviation of the labels; 1 if the standard deviation is nothing but rounding error."""
    if len(set(numbers)) == 1:
        raise UserError(f"All labels to learn from are {numbers[0]:g}: there is nothing to learn.")
    largest = max(map(abs, numbers))
    if largest > LARGEST:
        raise UserError(f"The labels reach {largest:.3g}; those to be learnt must not exceed {LARGEST:g}: scale them.")
    scale = 2.0 ** math.frexp(largest)[1]  # without it, the squares of small numbers are 0
    std = float(np.std(np.divide(numbers, scale)))
    return float(np.mean(numbers)), std * scale if std > 1e-14 * largest / scale else 1.0
