"""Classification: one class per sample, or any number of them."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Num, Shaped
from torch import Tensor, nn

from ..errors import UserError
from .calibration import calibration_error
from .interval import wilson_interval
from .objective import IGNORE, Batch, at_least_fp32


@dataclass(frozen=True)
class Classification:
    """One class per sample; targets are class numbers, or probabilities "b classes" (mixup), or IGNORE."""

    label_smoothing: float = 0.0
    binary: bool = False
    """The loss of a sample is the mean over the classes of their binary cross-entropies, each class against all others
    (Wightman et al. 2021, "ResNet strikes back", section 3), instead of the cross-entropy of the softmax."""
    weights: tuple[float, ...] | None = None
    """Of the classes: the loss of a sample is weighted by that of its class, and the mean is over the weights, as in
    torch's CrossEntropyLoss."""
    primary = "accuracy"
    lower_is_better = False
    percent = True

    def count(self, batch: Batch) -> Num[Tensor, ""]:
        if self.weights is not None:
            return self.sample_weights(batch.targets).sum()
        targets = batch.targets
        return torch.tensor(len(targets)) if targets.is_floating_point() else (targets != IGNORE).sum()

    def loss(self, model: nn.Module, batch: Batch) -> Float[Tensor, ""]:
        return self.loss_of(at_least_fp32(model(*batch.inputs)), batch)

    def loss_of(self, logits: Float[Tensor, "b classes"], batch: Batch) -> Float[Tensor, ""]:
        """The sum of the losses, from the model's logits."""
        smoothing = self.label_smoothing
        if self.binary:
            return self._binary_loss(logits, batch.targets)
        weight = None if self.weights is None else logits.new_tensor(self.weights)
        try:
            return F.cross_entropy(
                logits, batch.targets, weight, reduction="sum", label_smoothing=smoothing, ignore_index=IGNORE
            )
        except (IndexError, RuntimeError, ValueError):
            _check_targets(logits, batch.targets)
            raise

    def _binary_loss(self, logits: Float[Tensor, "b classes"], targets: Shaped[Tensor, "b ..."]) -> Float[Tensor, ""]:
        expected = targets.to(logits.dtype)
        if targets.ndim == 1:
            expected = F.one_hot(targets.clamp(min=0), logits.shape[1]).to(logits.dtype)
        expected = expected * (1 - self.label_smoothing) + self.label_smoothing / logits.shape[1]
        losses = F.binary_cross_entropy_with_logits(logits, expected, reduction="none").mean(dim=1)
        return (losses * self.sample_weights(targets)).sum()

    def sample_weights(self, targets: Shaped[Tensor, "b ..."]) -> Float[Tensor, "b"]:
        """0 where the target is ignored."""
        weights = None if self.weights is None else torch.tensor(self.weights, device=targets.device)
        if targets.is_floating_point():
            return targets.new_ones(len(targets)) if weights is None else targets @ weights.to(targets)
        valid = targets != IGNORE
        return valid.float() if weights is None else weights[targets.clamp(min=0)] * valid

    def evaluate(self, model: nn.Module, batch: Batch) -> dict[str, Shaped[Tensor, "b ..."]]:
        """The loss is the cross-entropy of the softmax, without weights and smoothing, so that it can be compared."""
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


def _check_targets(logits: Float[Tensor, "b classes"], targets: Shaped[Tensor, "..."]) -> None:
    """Raise a UserError if these cannot be targets."""
    b, classes = logits.shape
    if targets.is_floating_point():
        if targets.shape != (b, classes):
            raise UserError(
                f"Classification: probabilities of classes are {b} x {classes}, not {tuple(targets.shape)}."
            )
    elif targets.dtype != torch.int64 or targets.shape != (b,):
        raise UserError(
            f"Classification: targets must be {b} class numbers in 64-bit integers, not of shape "
            f"{tuple(targets.shape)} and {targets.dtype}."
        )
    elif len(wrong := targets[(targets != IGNORE) & ((targets < 0) | (targets >= classes))]):
        raise UserError(f"Classification: there is no class {int(wrong[0])}: the model has {classes}, counted from 0.")


def balanced_weights(numbers: Sequence[int], classes: int) -> tuple[float, ...]:
    """A weight for each class, inversely proportional to its number of samples and 1 in the mean over all samples (as
    scikit-learn's class_weight="balanced"); 0 for a class without samples. numbers: the class of each sample."""
    counts = Counter(numbers)
    return tuple(len(numbers) / (len(counts) * counts[c]) if counts[c] else 0.0 for c in range(classes))


@dataclass(frozen=True)
class MultiLabel:
    """Any number of classes per sample; targets "b classes" are 0 or 1 (or between, after mixup), or IGNORE."""

    primary = "mAP"
    lower_is_better = False
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
