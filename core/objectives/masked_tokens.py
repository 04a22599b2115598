"""Masked language modelling: predict the masked tokens of a vocabulary."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from .objective import IGNORE, Batch, in_full


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
