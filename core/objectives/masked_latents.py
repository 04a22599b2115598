"""The objective of masked latent prediction."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from .latent import LatentErrors
from .objective import Batch


@dataclass(frozen=True)
class MaskedLatents:
    """Predict what the teacher makes of masked tokens, and of the whole sample. The model is a `LatentPrediction`.

    summary: the weight of the whole sample.
    """

    summary: float = 1.0
    primary = "loss"
    lower_is_better = True
    percent = False

    def count(self, batch: Batch) -> Int[Tensor, ""]:
        return torch.tensor(len(batch.targets))

    def errors(self, model: nn.Module, batch: Batch) -> LatentErrors:
        return model(*batch.inputs)

    def loss(self, model: nn.Module, batch: Batch) -> Float[Tensor, ""]:
        return self.losses(self.errors(model, batch)).sum()

    def losses(self, errors: LatentErrors) -> Float[Tensor, "s"]:
        return errors.tokens + self.summary * errors.summary

    def evaluate(self, model: nn.Module, batch: Batch) -> dict[str, Shaped[Tensor, "b ..."]]:
        errors = self.errors(model, batch)
        return {"loss": self.losses(errors), "tokens": errors.tokens, "summary": errors.summary}

    def metrics(self, results: Mapping[str, Shaped[Tensor, "b ..."]]) -> dict[str, float]:
        """loss: the weighted sum of the mean squared errors of masked tokens and of summaries. It says how well the
        student follows its teacher, which changes as well: it need not fall while features improve."""
        return {name: results[name].mean().item() for name in ("loss", "tokens", "summary")}
