"""The interface of an objective, and the batch that it is computed on.

An objective turns a model and a batch into a sum of losses, and counts the targets that the sum runs over. The loop
divides by the count of the whole step, so accumulated micro-batches and processes add up to exactly the big batch.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Shaped
from torch import Tensor, nn

from ..attention.packing import Packing

IGNORE = -100  # a target that is ignored (torch's own convention)


class Batch(NamedTuple):
    """`inputs` are the model's positional arguments."""

    inputs: tuple[Any, ...]
    targets: Shaped[Tensor, "b ..."]

    @property
    def packing(self) -> Packing | None:
        """Where the samples lie in a packed row, if they do."""
        return next((value for value in self.inputs if isinstance(value, Packing)), None)


@runtime_checkable
class Objective(Protocol):
    primary: str
    """Name of the main metric, by which models are compared."""
    lower_is_better: bool
    """Whether less of that metric is better, as of a loss or an error."""
    percent: bool
    """Whether that metric is a fraction, to be shown as a percentage."""

    def count(self, batch: Batch) -> Tensor:
        """How many targets are not ignored."""
        ...

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The sum of the losses over the targets that are not ignored."""
        ...

    def evaluate(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """What `metrics` needs of each sample; the first axis of each tensor is the batch."""
        ...

    def metrics(self, results: Mapping[str, Tensor]) -> dict[str, float]:
        """Metrics over a whole test set, from the concatenated results of `evaluate`."""
        ...


@runtime_checkable
class JointObjective(Objective, Protocol):
    """An objective whose loss depends on all samples of a batch together: the losses of its parts do not add up."""

    def vectors(self, model: nn.Module, batch: Batch) -> Sequence[Tensor]:
        """What the loss needs of the samples: tensors "b ..."."""
        ...

    def joint_loss(self, vectors: Sequence[Tensor], targets: Tensor) -> Tensor:
        """The sum of the losses over the targets that are not ignored, from the vectors of all samples."""
        ...


def at_least_fp32(logits: Tensor) -> Tensor:
    """Losses are computed in fp32 at least."""
    return logits if logits.dtype == torch.float64 else logits.float()
