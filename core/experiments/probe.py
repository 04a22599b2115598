"""What a model's frozen features are worth: a linear probe and its nearest neighbours.

`python -m vision.probe EXPERIMENT --init MODEL` asks it of any model on the data of any experiment with classes.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import nn
from torch.utils.data import DataLoader, Dataset, Subset

from ..errors import UserError
from ..objectives.objective import Batch
from ..training.sampling import seed_everything

Features = Callable[..., Float[torch.Tensor, "b d"]]
NEIGHBOURS = 20
MOST = 20_000  # training samples


class Worth(NamedTuple):
    """Accuracies on the test set."""

    linear: float
    """Of logistic regression."""
    neighbours: float
    """Of a vote among the nearest in angle, the nearer the weightier (Wu et al. 2018, section 3.4)."""


def probe(
    model: nn.Module,
    features: Features,
    train: Dataset,
    test: Dataset,
    collate: Callable[[list], Batch],
    most: int = MOST,
    device: str = "cpu",
) -> Worth:
    """features: of a model and its inputs, one vector per sample. most: training samples, drawn at random."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    chosen = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))[:most].tolist()
    model.to(device).eval()
    known = describe(model, features, Subset(train, chosen), collate, device)
    asked, truth = describe(model, features, test, collate, device)
    linear = make_pipeline(StandardScaler(), LogisticRegression(max_iter=500)).fit(*known)
    nearest = KNeighborsClassifier(min(NEIGHBOURS, len(chosen)), weights="distance", metric="cosine").fit(*known)
    return Worth(*(float((method.predict(asked) == truth).mean()) for method in (linear, nearest)))


@torch.no_grad()
def describe(
    model: nn.Module, features: Features, data: Dataset, collate: Callable[[list], Batch], device: str
) -> tuple[Float[np.ndarray, "n d"], Int[np.ndarray, "n"]]:
    """Each sample's features and class."""
    seed_everything(0)
    vectors, classes = [], []
    for batch in DataLoader(data, batch_size=64, collate_fn=collate):
        if batch.targets.ndim != 1 or batch.targets.is_floating_point():
            raise UserError("A probe needs data with one class per sample: choose another experiment.")
        inputs = (value.to(device) if isinstance(value, torch.Tensor) else value for value in batch.inputs)
        vectors.append(features(model, *inputs).float().cpu())
        classes.append(batch.targets)
    return torch.cat(vectors).numpy(), torch.cat(classes).numpy()
