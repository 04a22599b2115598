"""What the joint space and the fused model are trained for and measured by."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, permutations
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn

from core import IGNORE, Batch, Classification, Contrastive

from .model import MODALITIES


class Direction(NamedTuple):
    """How well things shown in one modality are found among those shown in another."""

    query: str
    among: str
    zero_shot: float
    """Share of queries whose nearest centre of a thing is their own thing's."""
    recall_1: float
    """Share of queries whose nearest sample shows the same thing."""
    recall_5: float
    """Share of queries that have one that does among their five nearest."""
    median_rank: float
    """Of the nearest that does."""


@dataclass(frozen=True)
class JointSpace(Contrastive):
    """Contrastive, but a vector of 0 is an absent view: a pair of views counts where both are there."""

    primary = "zero_shot"

    def joint_loss(self, vectors: Sequence[Float[Tensor, "b d"]], targets: Int[Tensor, "b"]) -> Float[Tensor, ""]:
        """As `Contrastive`'s where all views are there: the mean over the pairs of views that any sample has."""
        losses, used = [], 0
        for a, b in combinations(vectors, 2):
            both = a.detach().any(dim=1) & b.detach().any(dim=1)
            losses.append(super().joint_loss([a, b], targets.where(both, IGNORE)))
            used += int(both.any())
        return torch.stack(losses).sum() / max(used, 1)

    def metrics(self, results: Mapping[str, Shaped[Tensor, "b ..."]]) -> dict[str, float]:
        """zero_shot, recall: means over the directions, which have each their own zero-shot accuracy too."""
        vectors, targets = results["vectors"], results["targets"]
        found = directions(vectors, targets)
        losses = []
        for a, b in combinations(vectors.unbind(dim=1), 2):
            both = a.any(dim=1) & b.any(dim=1) & (targets != IGNORE)
            if both.any():
                ways = [self.retrieve(x[both], y[both], targets[both])[0].sum() for x, y in ((a, b), (b, a))]
                losses.append(sum(ways).item() / 2)
        return {
            "loss": sum(losses) / max(len(losses), 1) / max(int((targets != IGNORE).sum()), 1),
            "zero_shot": sum(d.zero_shot for d in found) / max(len(found), 1),
            "recall": sum(d.recall_1 for d in found) / max(len(found), 1),
            **{f"{d.query}_to_{d.among}": d.zero_shot for d in found},
        }


def directions(vectors: Float[Tensor, "n 3 d"], things: Int[Tensor, "n"]) -> list[Direction]:
    """Those of the six that the samples allow."""
    found = []
    for query, among in permutations(range(len(MODALITIES)), 2):
        a, b = vectors[:, query], vectors[:, among]
        there = b.any(dim=1) & (things != IGNORE)
        asked = a.any(dim=1) & torch.isin(things, things[there])
        if asked.any():
            names = MODALITIES[query], MODALITIES[among]
            found.append(Direction(*names, *_ranked(a[asked], things[asked], b[there], things[there])))
    return found


def _ranked(
    a: Float[Tensor, "n d"], wanted: Int[Tensor, "n"], b: Float[Tensor, "m d"], things: Int[Tensor, "m"]
) -> tuple[float, float, float, float]:
    kinds, number = things.unique(return_inverse=True)
    centres = torch.zeros(len(kinds), b.shape[1]).index_add(0, number, F.normalize(b, dim=1))
    right = kinds[(a @ F.normalize(centres, dim=1).T).argmax(dim=1)] == wanted
    ranks = []
    for rows, mine in zip(a.split(1024), wanted.split(1024), strict=True):
        logits = rows @ b.T
        best = logits.where(mine[:, None] == things, -torch.inf).amax(dim=1, keepdim=True)
        ranks.append(1 + (logits > best).sum(dim=1))
    rank = torch.cat(ranks).float()
    return tuple(
        x.item()
        for x in (right.float().mean(), (rank <= 1).float().mean(), (rank <= 5).float().mean(), rank.quantile(0.5))
    )


@dataclass(frozen=True)
class FromAnySubset(Classification):
    """Classification, measured with every subset of `modalities`; `accuracy` is with all of them."""

    modalities: tuple[str, ...] = MODALITIES

    def subsets(self) -> list[tuple[str, ...]]:
        sizes = range(1, len(self.modalities))
        return [subset for size in sizes for subset in combinations(self.modalities, size)]

    def evaluate(self, model: nn.Module, batch: Batch) -> dict[str, Shaped[Tensor, "b ..."]]:
        found = super().evaluate(model, batch)
        for subset in self.subsets():
            found["+".join(subset)] = model(*only(batch, subset).inputs).argmax(dim=-1) == batch.targets
        return found

    def metrics(self, results: Mapping[str, Shaped[Tensor, "b ..."]]) -> dict[str, float]:
        alone = {name: results[name].float().mean().item() for name in map("+".join, self.subsets())}
        return super().metrics(results) | alone


def only(batch: Batch, modalities: Sequence[str]) -> Batch:
    """The batch with the other modalities masked out."""
    *inputs, present = batch.inputs
    kept: Bool[Tensor, "3"] = torch.tensor([name in modalities for name in MODALITIES], device=present.device)
    return Batch((*inputs, present & kept), batch.targets)
