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

    If the texts lie in one row, the inputs have a `Packing` and the targets are "1 n". The model takes `where` "b n"
    and returns logits "masked vocabulary" for those tokens alone.
    """

    primary = "loss"
    lower_is_better = True
    percent = False

    def count(self, batch: Batch) -> Int[Tensor, ""]:
        return (batch.targets != IGNORE).sum()

    def loss(self, model: nn.Module, batch: Batch) -> Float[Tensor, ""]:
        masked = batch.targets != IGNORE
        logits = at_least_fp32(model(*batch.inputs, where=masked))
        return F.cross_entropy(logits, batch.targets[masked], reduction="sum")

    def evaluate(self, model: nn.Module, batch: Batch) -> dict[str, Shaped[Tensor, "texts ..."]]:
        masked, packing = batch.targets != IGNORE, batch.packing
        logits, targets = model(*batch.inputs, where=masked).float(), batch.targets[masked]
        if packing is None:
            sample, count = masked.nonzero()[:, 0], len(masked)
        else:
            sequence = packing.tokens_on(masked.device, masked.shape[1]).sequence
            sample, count = sequence[masked[0]], len(packing)
        zeros = torch.zeros(count, device=logits.device)
        return {
            "loss": zeros.index_add(0, sample, F.cross_entropy(logits, targets, reduction="none")),
            "correct": zeros.index_add(0, sample, (logits.argmax(dim=-1) == targets).float()),
            "masked": zeros.long().index_add(0, sample, torch.ones_like(sample)),
        }

    def metrics(self, results: Mapping[str, Shaped[Tensor, "b ..."]]) -> dict[str, float]:
        """loss: cross-entropy (nats) per masked token."""
        masked = results["masked"].sum()
        return {
            "loss": (results["loss"].sum() / masked).item(),
            "accuracy": (results["correct"].sum() / masked).item(),
        }
