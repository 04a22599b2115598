"""Contrastive learning: samples of the same target are similar, all others are not; between any two of several views.

A model returns vectors "b d" for each view (images and text, for example), and ends with a `Similarity`, so that the
product of two vectors is the logit of the two showing the same thing. All vectors of a batch count together, also where
it is cut into micro-batches or spread over processes, and the gradient is exactly that of the whole
(core/training/gradients.py).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn

from ..encoder.init import constant
from .objective import IGNORE, Batch, at_least_fp32


class Similarity(nn.Module):
    """Vectors of length 1, times the square root of a learned scale: the product of two is their logit.

    scale: its first value; it never exceeds `largest` (Radford et al. 2021, section 2.3). bias: the first value of a
    learned bias of the logits, for `SigmoidContrastive`; half of it is appended to each vector.
    """

    def __init__(self, scale: float = 1 / 0.07, bias: float | None = None, largest: float = 100.0):
        super().__init__()
        self.largest = largest
        self.log_scale = constant(value=math.log(scale))
        self.bias = None if bias is None else constant(value=bias)

    def forward(self, x: Float[Tensor, "b d"]) -> Float[Tensor, "b e"]:
        if self.training:  # clamp the parameter itself, as CLIP does: beyond the limit it would have no gradient
            with torch.no_grad():
                self.log_scale.clamp_(max=math.log(self.largest))
        vectors = F.normalize(at_least_fp32(x), dim=1) * (self.log_scale / 2).exp().clamp(max=self.largest**0.5)
        return vectors if self.bias is None else torch.cat([vectors, (self.bias / 2).expand(len(x), 1)], dim=1)


@dataclass(frozen=True)
class Contrastive:
    """InfoNCE (Radford et al. 2021, section 2.3): for each sample of a view, find the matching one of another view.

    Targets "b" number the things shown. Samples of the same target all match each other (Khosla et al. 2020, equation
    2); samples of target IGNORE take no part.
    """

    primary = "recall"
    lower_is_better = False
    percent = True

    def logits(self, a: Float[Tensor, "n d"], b: Float[Tensor, "m d"]) -> Float[Tensor, "n m"]:
        return a @ b.T

    def losses(self, logits: Float[Tensor, "n m"], matches: Bool[Tensor, "n m"]) -> Float[Tensor, "n"]:
        """The loss of each row (nats)."""
        return -(logits.log_softmax(dim=1) * matches).sum(dim=1) / matches.sum(dim=1)

    def count(self, batch: Batch) -> Int[Tensor, ""]:
        return (batch.targets != IGNORE).sum()

    def vectors(self, model: nn.Module, batch: Batch) -> tuple[Float[Tensor, "b d"], ...]:
        return tuple(model(*batch.inputs))

    def joint_loss(self, vectors: Sequence[Float[Tensor, "b d"]], targets: Int[Tensor, "b"]) -> Float[Tensor, ""]:
        """The losses from each view to each other, averaged over the pairs of views and summed over the samples."""
        valid = targets != IGNORE
        views, targets = [at_least_fp32(view[valid]) for view in vectors], targets[valid]
        matches = targets[:, None] == targets
        return torch.stack([self.losses(self.logits(a, b), matches).sum() for a, b in _ordered_pairs(views)]).mean()

    def loss(self, model: nn.Module, batch: Batch) -> Float[Tensor, ""]:
        return self.joint_loss(self.vectors(model, batch), batch.targets)

    def evaluate(self, model: nn.Module, batch: Batch) -> dict[str, Shaped[Tensor, "b ..."]]:
        vectors = torch.stack([view.float() for view in self.vectors(model, batch)], dim=1)
        return {"vectors": vectors, "targets": batch.targets}

    def metrics(self, results: Mapping[str, Shaped[Tensor, "b ..."]]) -> dict[str, float]:
        """recall: fraction of samples whose nearest in another view, of the whole test set, is a match."""
        valid = results["targets"] != IGNORE
        views, targets = results["vectors"][valid].unbind(dim=1), results["targets"][valid]
        retrieved = [self.retrieve(a, b, targets) for a, b in _ordered_pairs(views)]
        losses, correct = (torch.cat(parts) for parts in zip(*retrieved, strict=True))
        return {"loss": losses.mean().item(), "recall": correct.float().mean().item()}

    def retrieve(
        self, a: Float[Tensor, "n d"], b: Float[Tensor, "n d"], targets: Int[Tensor, "n"]
    ) -> tuple[Float[Tensor, "n"], Bool[Tensor, "n"]]:
        """For each row of `a` its loss against all of `b`, and whether its nearest there is a match. Computed for 1,024
        rows at a time, to save memory."""
        losses, correct = [a.new_zeros(0)], [targets.new_zeros(0, dtype=torch.bool)]
        for rows, row_targets in zip(a.split(1024), targets.split(1024), strict=True):
            if len(rows):
                logits, matches = self.logits(rows, b), row_targets[:, None] == targets
                losses.append(self.losses(logits, matches))
                correct.append(matches.gather(1, logits.argmax(dim=1, keepdim=True))[:, 0])
        return torch.cat(losses), torch.cat(correct)


@dataclass(frozen=True)
class SigmoidContrastive(Contrastive):
    """A binary classification of each pair of samples: a match or not (SigLIP: Zhai et al. 2023, algorithm 1).

    The model's `Similarity` has a bias, at first -10, since most pairs are no match.
    """

    def logits(self, a: Float[Tensor, "n d"], b: Float[Tensor, "m d"]) -> Float[Tensor, "n m"]:
        return a[:, :-1] @ b[:, :-1].T + a[:, -1:] + b[:, -1]

    def losses(self, logits: Float[Tensor, "n m"], matches: Bool[Tensor, "n m"]) -> Float[Tensor, "n"]:
        return F.softplus(logits.where(~matches, -logits)).sum(dim=1)


def _ordered_pairs(views: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
    return [pair for a, b in combinations(views, 2) for pair in ((a, b), (b, a))]
