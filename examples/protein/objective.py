"""The objective of predicting contacts: a binary classification of each pair of residues."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn

from core import IGNORE, Batch

from .lattice import Landscape, pairs

LONG_RANGE = 7  # residues apart: half the shortest chain of the test, where proteins of 100 and more have 24


@dataclass(frozen=True)
class Contacts:
    """Targets "b n n" are fractions of ground states, or IGNORE; the model takes a mask and returns logits "b n n".

    precision: fraction of true contacts among the L / 5 most probable pairs at long range, L the chain's length (as in
    CASP: Monastyrskyy et al. 2014). folded: fraction of chains whose most probable walk is the ground state.
    """

    landscapes: Mapping[int, Landscape] = field(default_factory=dict, repr=False)
    primary = "precision"
    lower_is_better = False
    percent = True

    def count(self, batch: Batch) -> Int[Tensor, ""]:
        return (batch.targets != IGNORE).sum()

    def loss(self, model: nn.Module, batch: Batch) -> Float[Tensor, ""]:
        valid = batch.targets != IGNORE
        logits = model(*batch.inputs).float()
        return F.binary_cross_entropy_with_logits(logits[valid], batch.targets[valid], reduction="sum")

    def evaluate(self, model: nn.Module, batch: Batch) -> dict[str, Shaped[Tensor, "b ..."]]:
        residues, mask = batch.inputs
        return {
            "residues": residues,
            "length": mask.sum(dim=1),
            "logits": model(residues, mask).float(),
            "targets": batch.targets,
        }

    def metrics(self, results: Mapping[str, Shaped[Tensor, "b ..."]]) -> dict[str, float]:
        logits, targets, length = results["logits"], results["targets"], results["length"]
        valid = targets != IGNORE
        found = {
            "loss": F.binary_cross_entropy_with_logits(logits[valid], targets[valid]).item(),
            "precision": precision(logits, targets, length).mean().item(),
        }
        if self.landscapes:
            found["folded"] = self.folded(logits, targets, length).float().mean().item()
        return found

    def folded(
        self, logits: Float[Tensor, "b n n"], targets: Float[Tensor, "b n n"], length: Int[Tensor, "b"]
    ) -> Bool[Tensor, "b"]:
        """Whether the most probable fold has all the contacts of the target and no other."""
        right = torch.zeros(len(length), dtype=torch.bool)
        for n in length.unique().tolist():
            i, j = pairs(n)
            rows = (length == n).nonzero()[:, 0]
            contacts = torch.from_numpy(self.landscapes[n].contacts)[self.landscapes[n].decode(logits[rows])]
            right[rows] = (contacts == (targets[rows][:, i, j] > 0.5)).all(dim=1)
        return right


def precision(
    logits: Float[Tensor, "b n n"], targets: Float[Tensor, "b n n"], length: Int[Tensor, "b"]
) -> Float[Tensor, "b"]:
    """The fraction that touch among the L / 5 most probable long-range pairs of each chain."""
    place = torch.arange(logits.shape[1])
    far = (place - place[:, None] >= LONG_RANGE) & (targets != IGNORE)
    order = logits.where(far, -torch.inf).flatten(1).argsort(dim=1, descending=True)
    picked = torch.arange(order.shape[1]) < (length // 5)[:, None]
    touch = targets.flatten(1).gather(1, order) > 0.5
    return (touch & picked).sum(dim=1) / picked.sum(dim=1)
