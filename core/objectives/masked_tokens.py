"""Masked language modelling: predict the masked tokens of a vocabulary."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from .objective import IGNORE, Batch, at_least_fp32


@dataclass(frozen=True)
class MaskedTokens:
    """Predict masked tokens (Devlin et al. 2019, section 3.1); targets "b n" are IGNORE for tokens that are not masked.

    The model takes `where` "b n" and returns logits "masked vocabulary" for those tokens alone.
    """

    primary = "loss"
    percent = False

    def count(self, batch: Batch) -> Int[Tensor, ""]:
        return (batch.targets != IGNORE).sum()

    def loss(self, model: nn.Module, batch: Batch) -> Float[Tensor, ""]:
        masked = batch.targets != IGNORE
        logits = at_least_fp32(model(*batch.inputs, where=masked))
        return F.cross_entropy(logits, batch.targets[masked], reduction="sum")

    def evaluate(self, model: nn.Module, batch: Batch) -> dict[str, Shaped[Tensor, "b ..."]]:
        masked = batch.targets != IGNORE
        logits, targets = model(*batch.inputs, where=masked).float(), batch.targets[masked]
        sample = masked.nonzero()[:, 0]
        zeros = torch.zeros(len(masked), device=logits.device)
        return {
            "loss": zeros.index_add(0, sample, F.cross_entropy(logits, targets, reduction="none")),
            "correct": zeros.index_add(0, sample, (logits.argmax(dim=-1) == targets).float()),
            "masked": masked.sum(dim=1),
        }

    def metrics(self, results: Mapping[str, Shaped[Tensor, "b ..."]]) -> dict[str, float]:
        """loss: cross-entropy (nats) per masked token."""
        masked = results["masked"].sum()
        return {
            "loss": (results["loss"].sum() / masked).item(),
            "accuracy": (results["correct"].sum() / masked).item(),
        }
