"""`note_features`: what an objective lets others see of its samples; and figures of how much they still differ."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ..scoped import Scoped
from .objective import at_least_fp32

RECORD: Scoped[list[Tensor] | None] = Scoped("the features that are recorded")
MOST = 512  # vectors that the figures are taken of: their singular values cost more than the rest of a step otherwise


def note_features(x: Float[Tensor, "b d"]) -> None:
    """Show one vector per sample to whoever records; it costs nothing when nobody does."""
    vectors = RECORD.get()
    if vectors is not None:
        vectors.append(x.detach())


@contextmanager
def record_features() -> Iterator[list[Tensor]]:
    """Collect what is noted inside the `with`, in order."""
    vectors: list[Tensor] = []
    with RECORD.set(vectors):
        yield vectors


@torch.no_grad()
def feature_figures(x: Float[Tensor, "b d"]) -> dict[str, float]:
    """How much the vectors of a batch differ; nothing of fewer than two, or where one is not finite.

    spread: the standard deviation over the samples, averaged over the features, relative to the root mean square.
    rank: the effective rank (RankMe: Garrido et al. 2023, equations 1 and 2): e to the entropy of the singular values;
        at most the number of samples.
    cosine: of the angle between two samples, the mean over all pairs.
    """
    x = at_least_fp32(x[:: -(-len(x) // MOST) or 1])
    if len(x) < 2 or not x.isfinite().all():
        return {}
    tiny = torch.finfo(x.dtype).tiny
    unit = F.normalize(x, dim=1, eps=tiny)
    pairs = len(x) * (len(x) - 1)
    values = torch.linalg.svdvals(x)
    shares = values / values.sum().clamp(min=tiny)
    figures = {
        "spread": x.std(dim=0, correction=0).mean() / x.square().mean().sqrt().clamp(min=tiny),
        "rank": torch.special.entr(shares).sum().exp(),
        "cosine": (unit.sum(dim=0).square().sum() - unit.square().sum()) / pairs,
    }
    return {name: value.item() for name, value in figures.items()}
