"""What a model is trained for. One of each, for all modalities.

An objective turns a model and a batch into a sum of losses, and counts the targets that the sum runs over. The loop
divides by the count of the whole step, so accumulated micro-batches and processes add up to exactly the big batch.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

IGNORE = -100  # a target that counts for nothing (torch's own convention)


class Batch(NamedTuple):
    """`inputs` are the model's positional arguments."""

    inputs: tuple[Any, ...]
    targets: Shaped[Tensor, "b ..."]


@runtime_checkable
class Objective(Protocol):
    primary: str
    """The metric that says how good a model is (higher is better)."""

    def count(self, batch: Batch) -> Tensor:
        """How many targets count."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The sum of the losses over the targets that count."""

    def evaluate(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Per sample, what `metrics` needs; the first axis of each tensor is the batch."""

    def metrics(self, results: Mapping[str, Tensor]) -> dict[str, float]:
        """Figures over a whole test set, from the concatenated results."""


@dataclass(frozen=True)
class Classification:
    """One class per sample; targets are class numbers, or probabilities "b classes" (mixup), or IGNORE."""

    label_smoothing: float = 0.0
    primary: str = "accuracy"

    def count(self, batch: Batch) -> Int[Tensor, ""]:
        targets = batch.targets
        return torch.tensor(len(targets)) if targets.is_floating_point() else (targets != IGNORE).sum()

    def loss(self, model: nn.Module, batch: Batch) -> Float[Tensor, ""]:
        logits = model(*batch.inputs)
        return F.cross_entropy(
            logits.float(), batch.targets, reduction="sum", label_smoothing=self.label_smoothing, ignore_index=IGNORE
        )

    def evaluate(self, model: nn.Module, batch: Batch) -> dict[str, Shaped[Tensor, "b ..."]]:
        logits = model(*batch.inputs).float()
        loss = F.cross_entropy(logits, batch.targets, reduction="none", ignore_index=IGNORE)
        return {"loss": loss, "probabilities": logits.softmax(dim=-1), "targets": batch.targets}

    def metrics(self, results: Mapping[str, Shaped[Tensor, "b ..."]]) -> dict[str, float]:
        valid = results["targets"] != IGNORE
        right = results["probabilities"].argmax(dim=-1) == results["targets"]
        return {
            "loss": results["loss"][valid].mean().item(),
            "accuracy": right[valid].float().mean().item(),
        }
