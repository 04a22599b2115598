"""Objectives and metrics of the joint space and of the fused model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, permutations
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn

from core import IGNORE, Batch, Classification, Contrastive

from .things import MODALITIES


class Direction(NamedTuple):
    """Metrics of retrieval from one modality to another."""

    query: str
    among: str
    zero_shot: float
    """Fraction of queries whose nearest class centre is that of their own class."""
    recall_1: float
    """Fraction of queries whose nearest sample has the same class."""
    recall_5: float
    """Fraction of queries with a sample of the same class among the five nearest."""
    median_rank: float
    """Median rank of the nearest sample with the same class."""


@dataclass(frozen=True)
class JointSpace(Contrastive):
    """Contrastive, but a vector of 0 is an absent view: a pair of views counts only if both are present."""

    primary = "zero_shot"

    def joint_loss(self, vectors: Sequence[Float[Tensor, "b d"]], targets: Int[Tensor, "b"]) -> Float[Tensor, ""]:
        """The mean over the pairs of views that any sample has; as in `Contrastive` if all views are present."""
        losses, used = [], 0
        for a, b in combinations(vectors, 2):
            both = a.detach().any(dim=1) & b.detach().any(dim=1)
            losses.append(super().joint_loss([a, b], targets.where(both, IGNORE)))
            used += int(both.any())
        return torch.stack(losses).sum() / max(used, 1)

    def metrics(self, results: Mapping[str, Shaped[Tensor, "b ..."]]) -> dict[str, float]:
        """zero_shot and recall are means over all directions; each direction has its own zero-shot accuracy too."""
        vectors, targets = results["vectors"], results["targets"]
        measured = directions(vectors, targets)
        losses = []
        for a, b in combinations(vectors.unbind(dim=1), 2):
            both = a.any(dim=1) & b.any(dim=1) & (targets != IGNORE)
            if both.any():
                ways = [self.retrieve(x[both], y[both], targets[both])[0].sum() for x, y in ((a, b), (b, a))]
                losses.append(torch.stack(ways).sum().item() / 2)
        return {
            "loss": sum(losses) / max(len(losses), 1) / max(int((targets != IGNORE).sum()), 1),
            "zero_shot": sum(d.zero_shot for d in measured) / max(len(measured), 1),
            "recall": sum(d.recall_1 for d in measured) / max(len(measured), 1),
            **{f"{d.query}_to_{d.among}": d.zero_shot for d in measured},
        }


def directions(vectors: Float[Tensor, "n 3 d"], things: Int[Tensor, "n"]) -> list[Direction]:
    """Those of the six directions for which there are samples."""
    measured = []
    for query, among in permutations(range(len(MODALITIES)), 2):
        a, b = vectors[:, query], vectors[:, among]
        present = b.any(dim=1) & (things != IGNORE)
        queries = a.any(dim=1) & torch.isin(things, things[present])
        if queries.any():
            names = MODALITIES[query], MODALITIES[among]
            measured.append(Direction(*names, *_ranked(a[queries], things[queries], b[present], things[present])))
    return measured


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
    recall_1, recall_5 = ((rank <= most).float().mean().item() for most in (1, 5))
    return right.float().mean().item(), recall_1, recall_5, rank.quantile(0.5).item()


@dataclass(frozen=True)
class FromAnySubset(Classification):
    """Classification that is also evaluated on every subset of `modalities`; `accuracy` is that of all."""

    modalities: tuple[str, ...] = MODALITIES

    def subsets(self) -> list[tuple[str, ...]]:
        sizes = range(1, len(self.modalities))
        return [subset for size in sizes for subset in combinations(self.modalities, size)]

    def evaluate(self, model: nn.Module, batch: Batch) -> dict[str, Shaped[Tensor, "b ..."]]:
        results = super().evaluate(model, batch)
        for subset in self.subsets():
            results["+".join(subset)] = model(*only(batch, subset).inputs).argmax(dim=-1) == batch.targets
        return results

    def metrics(self, results: Mapping[str, Shaped[Tensor, "b ..."]]) -> dict[str, float]:
        alone = {name: results[name].float().mean().item() for name in map("+".join, self.subsets())}
        return super().metrics(results) | alone


def only(batch: Batch, modalities: Sequence[str]) -> Batch:
    """The batch in which the other modalities are absent."""
    *inputs, present = batch.inputs
    kept: Bool[Tensor, "3"] = torch.tensor([name in modalities for name in MODALITIES], device=present.device)
    return Batch((*inputs, present & kept), batch.targets)
