"""Classification: one class per sample, or any number of them."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from .calibration import calibration_error
from .interval import wilson_interval
from .objective import IGNORE, Batch, at_least_fp32


@dataclass(frozen=True)
class Classification:
    """One class per sample; targets are class numbers, or probabilities "b classes" (mixup), or IGNORE."""

    label_smoothing: float = 0.0
    primary = "accuracy"
    percent = True

    def count(self, batch: Batch) -> Int[Tensor, ""]:
        targets = batch.targets
        return torch.tensor(len(targets)) if targets.is_floating_point() else (targets != IGNORE).sum()

    def loss(self, model: nn.Module, batch: Batch) -> Float[Tensor, ""]:
        logits, smoothing = at_least_fp32(model(*batch.inputs)), self.label_smoothing
        return F.cross_entropy(logits, batch.targets, reduction="sum", label_smoothing=smoothing, ignore_index=IGNORE)

    def evaluate(self, model: nn.Module, batch: Batch) -> dict[str, Shaped[Tensor, "b ..."]]:
        logits = at_least_fp32(model(*batch.inputs))
        loss = F.cross_entropy(logits, batch.targets, reduction="none", ignore_index=IGNORE)
        return {"loss": loss, "probabilities": logits.softmax(dim=-1), "targets": batch.targets}

    def metrics(self, results: Mapping[str, Shaped[Tensor, "b ..."]]) -> dict[str, float]:
        valid = results["targets"] != IGNORE
        correct = results["probabilities"].argmax(dim=-1) == results["targets"]
        return {
            "loss": results["loss"][valid].mean().item(),
            "accuracy": correct[valid].float().mean().item(),
        }

    def interval(self, results: Mapping[str, Shaped[Tensor, "b ..."]]) -> tuple[float, float]:
        """The 95 % confidence interval of the accuracy."""
        return wilson_interval(self.metrics(results)["accuracy"], int((results["targets"] != IGNORE).sum()))

    def calibration(self, results: Mapping[str, Shaped[Tensor, "b ..."]]) -> float:
        """The expected calibration error."""
        valid = results["targets"] != IGNORE
        return calibration_error(results["probabilities"][valid], results["targets"][valid])


@dataclass(frozen=True)
class MultiLabel:
    """Any number of classes per sample; targets "b classes" are 0 or 1 (or between, after mixup), or IGNORE."""

    primary = "mAP"
    percent = True

    def count(self, batch: Batch) -> Int[Tensor, ""]:
        return (batch.targets != IGNORE).sum()

    def loss(self, model: nn.Module, batch: Batch) -> Float[Tensor, ""]:
        logits, valid = at_least_fp32(model(*batch.inputs)), batch.targets != IGNORE
        return F.binary_cross_entropy_with_logits(logits[valid], batch.targets[valid].to(logits), reduction="sum")

    def evaluate(self, model: nn.Module, batch: Batch) -> dict[str, Shaped[Tensor, "b ..."]]:
        return {"probabilities": model(*batch.inputs).float().sigmoid(), "targets": batch.targets}

    def metrics(self, results: Mapping[str, Shaped[Tensor, "b ..."]]) -> dict[str, float]:
        """mAP: average precision, averaged over the classes that the test set has (AudioSet's metric)."""
        from sklearn.metrics import average_precision_score  # half a second to import

        probabilities, targets = results["probabilities"], results["targets"]
        valid = targets != IGNORE
        loss = F.binary_cross_entropy(probabilities[valid].clamp(1e-7, 1 - 1e-7), targets[valid].float())
        precisions = [
            average_precision_score(targets[valid[:, c], c].numpy() > 0.5, probabilities[valid[:, c], c].numpy())
            for c in range(targets.shape[1])
            if (targets[valid[:, c], c] > 0.5).any()
        ]
        return {"loss": loss.item(), "mAP": float(sum(precisions) / max(len(precisions), 1))}
