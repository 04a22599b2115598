"""What a model is trained for. One of each, for all modalities.

An objective turns a model and a batch into a sum of losses, and counts the targets that the sum runs over. The loop
divides by the count of the whole step, so accumulated micro-batches and processes add up to exactly the big batch.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Shaped
from torch import Tensor, nn

IGNORE = -100  # a target that counts for nothing (torch's own convention)


class Batch(NamedTuple):
    """`inputs` are the model's positional arguments."""

    inputs: tuple[Any, ...]
    targets: Shaped[Tensor, "b ..."]


@runtime_checkable
class Objective(Protocol):
    primary: str
    """The metric that says how good a model is."""
    percent: bool
    """Whether that metric is a share, to be shown as a percentage."""

    def count(self, batch: Batch) -> Tensor:
        """How many targets count."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The sum of the losses over the targets that count."""

    def evaluate(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Per sample, what `metrics` needs; the first axis of each tensor is the batch."""

    def metrics(self, results: Mapping[str, Tensor]) -> dict[str, float]:
        """Figures over a whole test set, from the concatenated results."""


@runtime_checkable
class JointObjective(Objective, Protocol):
    """An objective in which the samples of a batch count together, so that its parts' losses do not add up."""

    def vectors(self, model: nn.Module, batch: Batch) -> Sequence[Tensor]:
        """All that the loss needs of the samples, "b ..." each."""

    def joint_loss(self, vectors: Sequence[Tensor], targets: Tensor) -> Tensor:
        """The sum of the losses over the targets that count, from the vectors of all samples."""


def in_full(logits: Tensor) -> Tensor:
    """Losses are found in fp32 at least."""
    return logits if logits.dtype == torch.float64 else logits.float()
