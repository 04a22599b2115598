"""What shows the same thing belongs together, what shows another does not: in pictures and words, or any other views.

A model returns vectors "b d" for each of several views, and ends with a `Similarity`, so that of two vectors the logit
that they belong together can be told. Of a batch cut into micro-batches or spread over processes, all vectors count
together, and the gradient is exactly that of the whole (core/training/gradients.py).
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
from .objective import IGNORE, Batch, in_full


class Similarity(nn.Module):
    """Vectors of length 1, times the root of a learned scale: the product of two is their logit.

    scale: what it starts at; never more than `largest` (Radford et al. 2021, section 2.3). bias: what a learned bias of
    the logits starts at, for `SigmoidContrastive`: half of it is each vector's last number.
    """

    def __init__(self, scale: float = 1 / 0.07, bias: float | None = None, largest: float = 100.0):
        super().__init__()
        self.largest = largest
        self.log_scale = constant(value=math.log(scale))
        self.bias = None if bias is None else constant(value=bias)

    def forward(self, x: Float[Tensor, "b d"]) -> Float[Tensor, "b e"]:
        if self.training:  # the scale itself, as CLIP does: beyond the limit it would have no gradient to come back by
            with torch.no_grad():
                self.log_scale.clamp_(max=math.log(self.largest))
        vectors = F.normalize(in_full(x), dim=1) * (self.log_scale / 2).exp().clamp(max=self.largest**0.5)
        return vectors if self.bias is None else torch.cat([vectors, (self.bias / 2).expand(len(x), 1)], dim=1)


@dataclass(frozen=True)
class Contrastive:
    """InfoNCE (Radford et al. 2021, section 2.3): each sample of a view tells its own among all of another view.

    Targets "b" number the things shown: of samples with the same number each belongs to each (Khosla et al. 2020,
    equation 2), one of number IGNORE takes no part.
    """

    primary = "recall"
    percent = True

    def logits(self, a: Float[Tensor, "n d"], b: Float[Tensor, "m d"]) -> Float[Tensor, "n m"]:
        return a @ b.T

    def losses(self, logits: Float[Tensor, "n m"], same: Bool[Tensor, "n m"]) -> Float[Tensor, "n"]:
        """How badly each finds its own (nats)."""
        return -(logits.log_softmax(dim=1) * same).sum(dim=1) / same.sum(dim=1)

    def count(self, batch: Batch) -> Int[Tensor, ""]:
        return (batch.targets != IGNORE).sum()

    def vectors(self, model: nn.Module, batch: Batch) -> tuple[Float[Tensor, "b d"], ...]:
        return tuple(model(*batch.inputs))

    def joint_loss(self, vectors: Sequence[Float[Tensor, "b d"]], targets: Int[Tensor, "b"]) -> Float[Tensor, ""]:
        """The losses from each view to each other, averaged over the pairs of views and summed over the samples."""
        valid = targets != IGNORE
        views, things = [in_full(view[valid]) for view in vectors], targets[valid]
        same = things[:, None] == things
        return torch.stack([self.losses(self.logits(a, b), same).sum() for a, b in _both_ways(views)]).mean()

    def loss(self, model: nn.Module, batch: Batch) -> Float[Tensor, ""]:
        return self.joint_loss(self.vectors(model, batch), batch.targets)

    def evaluate(self, model: nn.Module, batch: Batch) -> dict[str, Shaped[Tensor, "b ..."]]:
        vectors = torch.stack([view.float() for view in self.vectors(model, batch)], dim=1)
        return {"vectors": vectors, "targets": batch.targets}

    def metrics(self, results: Mapping[str, Shaped[Tensor, "b ..."]]) -> dict[str, float]:
        """recall: share of samples whose nearest in another view, of the whole test set, shows the same thing."""
        valid = results["targets"] != IGNORE
        views, things = results["vectors"][valid].unbind(dim=1), results["targets"][valid]
        found = [self.between(a, b, things) for a, b in _both_ways(views)]
        losses, right = (torch.cat(parts) for parts in zip(*found, strict=True))
        return {"loss": losses.mean().item(), "recall": right.float().mean().item()}

    def between(
        self, a: Float[Tensor, "n d"], b: Float[Tensor, "n d"], things: Int[Tensor, "n"]
    ) -> tuple[Float[Tensor, "n"], Bool[Tensor, "n"]]:
        """How badly each of `a` finds its own in `b`, and whether its nearest there is one; some rows at a time."""
        losses, right = [a.new_zeros(0)], [things.new_zeros(0, dtype=torch.bool)]
        for rows, some in zip(a.split(1024), things.split(1024), strict=True):
            if len(rows):
                logits, same = self.logits(rows, b), some[:, None] == things
                losses.append(self.losses(logits, same))
                right.append(same.gather(1, logits.argmax(dim=1, keepdim=True))[:, 0])
        return torch.cat(losses), torch.cat(right)


@dataclass(frozen=True)
class SigmoidContrastive(Contrastive):
    """Each two samples told by themselves whether they show the same thing (SigLIP: Zhai et al. 2023, algorithm 1).

    The model's `Similarity` has a bias, at first -10: most pairs do not belong together.
    """

    def logits(self, a: Float[Tensor, "n d"], b: Float[Tensor, "m d"]) -> Float[Tensor, "n m"]:
        return a[:, :-1] @ b[:, :-1].T + a[:, -1:] + b[:, -1]

    def losses(self, logits: Float[Tensor, "n m"], same: Bool[Tensor, "n m"]) -> Float[Tensor, "n"]:
        return F.softplus(logits.where(~same, -logits)).sum(dim=1)


def _both_ways(views: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
    return [pair for a, b in combinations(views, 2) for pair in ((a, b), (b, a))]
