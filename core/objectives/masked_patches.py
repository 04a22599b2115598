"""Masked autoencoding: predict the masked patches."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from .masked_autoencoder import MaskedPrediction
from .objective import Batch


@dataclass(frozen=True)
class MaskedPatches:
    """Predict masked patches by squared error, averaged over those of each sample. The model is a
    `MaskedAutoencoder`."""

    primary = "loss"
    lower_is_better = True
    percent = False

    def count(self, batch: Batch) -> Int[Tensor, ""]:
        return torch.tensor(len(batch.targets))

    def loss(self, model: nn.Module, batch: Batch) -> Float[Tensor, ""]:
        return self.errors(model(*batch.inputs))[0].sum()

    def evaluate(self, model: nn.Module, batch: Batch) -> dict[str, Shaped[Tensor, "b ..."]]:
        loss, baseline = self.errors(model(*batch.inputs))
        return {"loss": loss, "baseline": baseline}

    def metrics(self, results: Mapping[str, Shaped[Tensor, "b ..."]]) -> dict[str, float]:
        """loss: mean squared error. explained: by which fraction it is less than that of predicting 0 (which with
        `normalise` is each patch's mean)."""
        loss, baseline = (results[name].mean().item() for name in ("loss", "baseline"))
        return {"loss": loss, "explained": 1 - loss / max(baseline, 1e-12)}

    def errors(self, prediction: MaskedPrediction) -> tuple[Float[Tensor, "s"], Float[Tensor, "s"]]:
        """The mean squared errors of the predictions, and of predicting 0, for each sample."""
        target, predicted, masked, packing = prediction

        def mean(error: Float[Tensor, "b n p"]) -> Float[Tensor, "s"]:
            errors = error.square().mean(dim=2).where(masked, 0)
            if packing is None:
                return errors.sum(dim=1) / masked.sum(dim=1).clamp(min=1)
            sequence = packing.tokens_on(errors.device).sequence
            sums, counts = (
                torch.zeros(len(packing), dtype=errors.dtype, device=errors.device).index_add(0, sequence, values[0])
                for values in (errors, masked.to(errors.dtype))
            )
            return sums / counts.clamp(min=1)

        return mean(predicted - target), mean(target)
