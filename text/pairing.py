"""Sentence vectors are trained on pairs of texts: in-batch negatives or scores, of whole and of shortened vectors."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from core import Batch, Contrastive, Similarity
from core.objectives.objective import at_least_fp32
from core.objectives.regression import correlations

from .model import TextEncoder

SCALE = 20.0  # of cosines, at first: that of sentence-transformers


class PairEncoder(nn.Module):
    """The vectors of the first and of the second texts of a batch, in which all first texts precede all second ones.

    scale: of the similarity, learned; None for vectors of length 1, for scores.
    """

    def __init__(self, encoder: TextEncoder, scale: float | None):
        super().__init__()
        self.encoder = encoder
        self.similarity = None if scale is None else Similarity(scale)

    def forward(self, *inputs: Any) -> tuple[Float[Tensor, "b d"], Float[Tensor, "b d"]]:
        vectors = self.encoder.pooled_texts(*inputs)
        vectors = F.normalize(vectors.float(), dim=-1) if self.similarity is None else self.similarity(vectors)
        first, second = vectors.chunk(2)
        return first, second


def shortened(vectors: Float[Tensor, "b d"], size: int) -> Float[Tensor, "b e"]:
    """The first `size` numbers of each vector, as long as the whole."""
    return F.normalize(vectors[:, :size], dim=-1) * vectors.norm(dim=-1, keepdim=True)


@dataclass(frozen=True)
class PairContrastive(Contrastive):
    """For each text find the other one of its pair (InfoNCE), also by the first numbers of the vectors alone.

    sizes: of those shortened vectors; the losses add up (Kusupati et al. 2022, equation 1).
    """

    sizes: tuple[int, ...] = ()

    def joint_loss(self, vectors: Sequence[Float[Tensor, "b d"]], targets: Int[Tensor, "b"]) -> Float[Tensor, ""]:
        losses = [super().joint_loss(vectors, targets)]
        for size in self.sizes:
            cut = [shortened(at_least_fp32(each), size) for each in vectors]
            losses.append(super().joint_loss(cut, targets))
        return torch.stack(losses).sum()

    def metrics(self, results: Mapping[str, Shaped[Tensor, "b ..."]]) -> dict[str, float]:
        """recall: fraction of texts whose nearest, of the other texts of the whole set, is of their pair."""
        metrics = super().metrics(results)
        for size in self.sizes:
            cut = torch.stack([shortened(view, size) for view in results["vectors"].unbind(dim=1)], dim=1)
            metrics[f"recall@{size}d"] = super().metrics({**results, "vectors": cut})["recall"]
        return metrics


@dataclass(frozen=True)
class PairScores:
    """The cosine of two vectors is the score of their pair, also that of their first numbers alone; by squared
    error, as CosineSimilarityLoss of sentence-transformers.

    sizes: of those shortened vectors; the losses add up.
    """

    sizes: tuple[int, ...] = ()
    primary = "spearman"
    lower_is_better = False
    percent = False

    def count(self, batch: Batch) -> Int[Tensor, ""]:
        return torch.tensor(len(batch.targets))

    def loss(self, model: nn.Module, batch: Batch) -> Float[Tensor, ""]:
        first, second = (at_least_fp32(view) for view in model(*batch.inputs))
        sizes = (first.shape[1], *self.sizes)
        cosines = torch.stack([F.cosine_similarity(first[:, :size], second[:, :size]) for size in sizes])
        return (cosines - batch.targets.to(cosines)).square().sum()

    def evaluate(self, model: nn.Module, batch: Batch) -> dict[str, Shaped[Tensor, "b ..."]]:
        views = [view.float() for view in model(*batch.inputs)]
        return {"vectors": torch.stack(views, dim=1), "targets": batch.targets}

    def metrics(self, results: Mapping[str, Shaped[Tensor, "b ..."]]) -> dict[str, float]:
        """Correlations of the cosines with the scores."""
        (first, second), targets = results["vectors"].unbind(dim=1), results["targets"]
        cosines = F.cosine_similarity(first, second)
        metrics = {"loss": (cosines - targets).square().mean().item(), **correlations(cosines, targets)}
        for size in self.sizes:
            cut = F.cosine_similarity(first[:, :size], second[:, :size])
            metrics[f"spearman@{size}d"] = correlations(cut, targets)["spearman"]
        return metrics
