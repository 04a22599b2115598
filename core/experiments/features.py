"""The features that a model computes of a data set's samples, and which samples are near each other in them."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset

from ..objectives.objective import Batch
from ..training.memory import freed_memory
from ..training.processes import to_device
from ..training.sampling import seeded

Features = Callable[..., Float[Tensor, "b d"]]
"""One vector per sample, from a model and its inputs."""
BATCH = 64


@torch.no_grad()
def extract_features(
    model: nn.Module, features: Features, data: Any, collate: Callable[[list], Batch], count: int | None = None
) -> tuple[Float[np.ndarray, "n d"], Shaped[np.ndarray, "n ..."]]:
    """The features and the target of each sample, on the model's device; of `count` evenly spaced ones if that is less.

    What is random in the data is the same in every call, and random numbers go on as if there had been none.
    """
    device = next(model.parameters()).device
    training = model.training
    model.eval()
    vectors, targets = [], []
    samples = Subset(data, evenly_spaced(len(data), len(data) if count is None else count))
    with seeded(0):
        for batch in DataLoader(samples, batch_size=BATCH, collate_fn=collate):
            inputs = to_device(batch, device).inputs
            vectors.append(features(model, *inputs).float().cpu())
            targets.append(batch.targets)
            freed_memory.check()
    model.train(training)
    return torch.cat(vectors).numpy(), torch.cat(targets).numpy()


def nearest(
    vectors: Float[np.ndarray, "n d"], queries: Sequence[int], count: int
) -> Int[np.ndarray, "queries neighbours"]:
    """For each query, the number of a vector, its nearest other vectors by angle, the nearest first."""
    unit = F.normalize(torch.from_numpy(vectors).double(), dim=1)
    similarity = unit[list(queries)] @ unit.T
    similarity[range(len(queries)), list(queries)] = -torch.inf
    return similarity.argsort(dim=1, descending=True, stable=True)[:, : min(count, len(unit) - 1)].numpy()


def nearest_before_and_after(
    before: Float[np.ndarray, "n d"], after: Float[np.ndarray, "n e"], queries: int, count: int = 4
) -> list[tuple[int, list[int], list[int]]]:
    """A few samples, each with those nearest to it in the features before training, and in those after it."""
    shown = evenly_spaced(len(before), queries)
    found = (nearest(vectors, shown, count).tolist() for vectors in (before, after))
    return list(zip(shown, *found, strict=True))


def evenly_spaced(size: int, count: int) -> list[int]:
    """At most `count` different indices from 0 up to `size`."""
    return list(dict.fromkeys(place * size // count for place in range(count)))
