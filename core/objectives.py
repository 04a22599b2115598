"""What a model is trained for. One of each, for all modalities.

An objective turns a model and a batch into a sum of losses, and counts the targets that the sum runs over. The loop
divides by the count of the whole step, so accumulated micro-batches and processes add up to exactly the big batch.
"""

from collections.abc import Mapping, Sequence
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
        logits = model(*batch.inputs)
        return F.cross_entropy(
            in_full(logits), batch.targets, reduction="sum", label_smoothing=self.label_smoothing, ignore_index=IGNORE
        )

    def evaluate(self, model: nn.Module, batch: Batch) -> dict[str, Shaped[Tensor, "b ..."]]:
        logits = in_full(model(*batch.inputs))
        loss = F.cross_entropy(logits, batch.targets, reduction="none", ignore_index=IGNORE)
        return {"loss": loss, "probabilities": logits.softmax(dim=-1), "targets": batch.targets}

    def metrics(self, results: Mapping[str, Shaped[Tensor, "b ..."]]) -> dict[str, float]:
        valid = results["targets"] != IGNORE
        right = results["probabilities"].argmax(dim=-1) == results["targets"]
        return {
            "loss": results["loss"][valid].mean().item(),
            "accuracy": right[valid].float().mean().item(),
        }


@dataclass(frozen=True)
class MultiLabel:
    """Any number of classes per sample; targets "b classes" are 0 or 1 (or between, mixed), or IGNORE."""

    primary = "mAP"
    percent = True

    def count(self, batch: Batch) -> Int[Tensor, ""]:
        return (batch.targets != IGNORE).sum()

    def loss(self, model: nn.Module, batch: Batch) -> Float[Tensor, ""]:
        logits, valid = in_full(model(*batch.inputs)), batch.targets != IGNORE
        return F.binary_cross_entropy_with_logits(logits[valid], batch.targets[valid].to(logits), reduction="sum")

    def evaluate(self, model: nn.Module, batch: Batch) -> dict[str, Shaped[Tensor, "b ..."]]:
        return {"probabilities": model(*batch.inputs).float().sigmoid(), "targets": batch.targets}

    def metrics(self, results: Mapping[str, Shaped[Tensor, "b ..."]]) -> dict[str, float]:
        """mAP: average precision, averaged over the classes that the test set has (AudioSet's metric)."""
        from sklearn.metrics import average_precision_score  # half a second to import

        chances, targets = results["probabilities"], results["targets"]
        valid = targets != IGNORE
        loss = F.binary_cross_entropy(chances[valid].clamp(1e-7, 1 - 1e-7), targets[valid].float())
        precisions = [
            average_precision_score(targets[valid[:, c], c].numpy() > 0.5, chances[valid[:, c], c].numpy())
            for c in range(targets.shape[1])
            if (targets[valid[:, c], c] > 0.5).any()
        ]
        return {"loss": loss.item(), "mAP": float(sum(precisions) / max(len(precisions), 1))}


@dataclass(frozen=True)
class Regression:
    """One number per sample, by squared error; the model has one output. Targets are standardised: `mean` and `std`
    are those of the training targets. Targets of float64 keep their digits until then, and predictions of them."""

    mean: float = 0.0
    std: float = 1.0
    primary = "r2"
    percent = False

    def count(self, batch: Batch) -> Int[Tensor, ""]:
        return batch.targets.isfinite().sum()

    def loss(self, model: nn.Module, batch: Batch) -> Float[Tensor, ""]:
        valid = batch.targets.isfinite()
        wanted = (batch.targets[valid] - self.mean) / self.std
        outputs = in_full(model(*batch.inputs))[valid, 0]
        return (outputs - wanted.to(outputs)).square().sum()

    def evaluate(self, model: nn.Module, batch: Batch) -> dict[str, Shaped[Tensor, "b ..."]]:
        outputs = model(*batch.inputs)[:, 0].to(torch.promote_types(batch.targets.dtype, torch.float32))
        return {"predictions": outputs * self.std + self.mean, "targets": batch.targets}

    def metrics(self, results: Mapping[str, Shaped[Tensor, "b ..."]]) -> dict[str, float]:
        """r2: share of the variance explained."""
        predictions, targets = results["predictions"], results["targets"]
        valid = targets.isfinite()
        error = (predictions - targets)[valid] / self.std
        spread = ((targets[valid] - targets[valid].mean()) / self.std).square().sum().clamp(min=1e-12)
        return {
            "loss": error.square().mean().item(),
            "mae": error.abs().mean().item() * self.std,
            "r2": (1 - error.square().sum() / spread).item(),
        }


@dataclass(frozen=True)
class MaskedTokens:
    """Predict hidden tokens of a vocabulary (Devlin et al. 2019, section 3.1); targets "b n" are IGNORE elsewhere.

    The model takes `where` "b n" and returns logits "hidden vocabulary" for those places alone.
    """

    primary = "loss"
    percent = False

    def count(self, batch: Batch) -> Int[Tensor, ""]:
        return (batch.targets != IGNORE).sum()

    def loss(self, model: nn.Module, batch: Batch) -> Float[Tensor, ""]:
        where = batch.targets != IGNORE
        return F.cross_entropy(in_full(model(*batch.inputs, where=where)), batch.targets[where], reduction="sum")

    def evaluate(self, model: nn.Module, batch: Batch) -> dict[str, Shaped[Tensor, "b ..."]]:
        where = batch.targets != IGNORE
        logits, targets = model(*batch.inputs, where=where).float(), batch.targets[where]
        sample = where.nonzero()[:, 0]
        zeros = torch.zeros(len(where), device=logits.device)
        return {
            "loss": zeros.index_add(0, sample, F.cross_entropy(logits, targets, reduction="none")),
            "right": zeros.index_add(0, sample, (logits.argmax(dim=-1) == targets).float()),
            "hidden": where.sum(dim=1),
        }

    def metrics(self, results: Mapping[str, Shaped[Tensor, "b ..."]]) -> dict[str, float]:
        """loss: nats per hidden token."""
        hidden = results["hidden"].sum()
        return {
            "loss": (results["loss"].sum() / hidden).item(),
            "accuracy": (results["right"].sum() / hidden).item(),
        }


def in_full(logits: Tensor) -> Tensor:
    """Losses are found in fp32 at least."""
    return logits if logits.dtype == torch.float64 else logits.float()
