"""Regression: one number per sample."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from .objective import Batch, at_least_fp32


@dataclass(frozen=True)
class Regression:
    """One number per sample, by squared error; the model has one output.

    Targets are standardised: `mean` and `std` are those of the training targets. Targets in fp64 are standardised in
    fp64, and predictions for them are fp64.
    """

    mean: float = 0.0
    std: float = 1.0
    primary = "r2"
    lower_is_better = False
    percent = False

    def count(self, batch: Batch) -> Int[Tensor, ""]:
        return batch.targets.isfinite().sum()

    def loss(self, model: nn.Module, batch: Batch) -> Float[Tensor, ""]:
        valid = batch.targets.isfinite()
        expected = (batch.targets[valid] - self.mean) / self.std
        outputs = at_least_fp32(model(*batch.inputs))[valid, 0]
        return (outputs - expected.to(outputs)).square().sum()

    def evaluate(self, model: nn.Module, batch: Batch) -> dict[str, Shaped[Tensor, "b ..."]]:
        outputs = model(*batch.inputs)[:, 0].to(torch.promote_types(batch.targets.dtype, torch.float32))
        return {"predictions": outputs * self.std + self.mean, "targets": batch.targets}

    def metrics(self, results: Mapping[str, Shaped[Tensor, "b ..."]]) -> dict[str, float]:
        """r2: fraction of the variance explained; where all targets are equal 1 if each is met and 0 otherwise, as in
        scikit-learn. pearson, spearman: correlation of the values, and of their ranks."""
        predictions, targets = results["predictions"], results["targets"]
        valid = targets.isfinite()
        error = (predictions - targets)[valid] / self.std
        wrong = error.square().sum()
        varies = bool((targets[valid] != targets[valid][:1]).any())
        spread = ((targets[valid] - targets[valid].mean()) / self.std).square().sum()
        return {
            "loss": error.square().mean().item(),
            "mae": error.abs().mean().item() * self.std,
            "r2": (1 - wrong / spread).item() if varies else float(not wrong),
            **correlations(predictions[valid], targets[valid]),
        }


def correlations(predictions: Float[Tensor, "n"], targets: Float[Tensor, "n"]) -> dict[str, float]:
    """Of the values (Pearson) and of their ranks (Spearman); 0 where either does not vary."""
    from scipy.stats import rankdata

    def pearson(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.corrcoef(a, b)[0, 1]) if len(a) > 1 and np.ptp(a) and np.ptp(b) else 0.0

    values = [values.double().numpy() for values in (predictions, targets)]
    return {"pearson": pearson(*values), "spearman": pearson(*(rankdata(each) for each in values))}
