"""A linear probe and nearest neighbours: how well classes can be predicted from a model's frozen features.

`python -m vision.probe EXPERIMENT --init MODEL` probes any model on the data of any experiment with classes.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import nn
from torch.utils.data import DataLoader, Dataset, Subset

from ..errors import UserError
from ..objectives.objective import Batch
from ..training.processes import to_device
from ..training.sampling import seed_everything
from ..training.task import Task

Features = Callable[..., Float[torch.Tensor, "b d"]]
NEIGHBOURS = 20
MAX_SAMPLES = 20_000  # of the training set


class ProbeResult(NamedTuple):
    """Accuracies on the test set."""

    linear: float
    """Of logistic regression."""
    neighbours: float
    """Of a vote among the nearest neighbours by angle, weighted by nearness (Wu et al. 2018, section 3.4)."""


def probe(task: Task, features: Features, max_samples: int = MAX_SAMPLES, device: str = "cpu") -> ProbeResult:
    """Probe the task's model. features: one vector per sample, from a model and its inputs. max_samples: training
    samples, drawn at random."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    chosen = torch.randperm(len(task.train), generator=torch.Generator().manual_seed(0))[:max_samples].tolist()
    task.model.to(device).eval()
    train = extract_features(task.model, features, Subset(task.train, chosen), task.collate, device)
    vectors, targets = extract_features(task.model, features, task.test, task.collate, device)
    linear = make_pipeline(StandardScaler(), LogisticRegression(max_iter=500))
    neighbours = KNeighborsClassifier(min(NEIGHBOURS, len(chosen)), weights="distance", metric="cosine")
    return ProbeResult(*(float((m.fit(*train).predict(vectors) == targets).mean()) for m in (linear, neighbours)))


@torch.no_grad()
def extract_features(
    model: nn.Module, features: Features, data: Dataset[Any], collate: Callable[[list], Batch], device: str
) -> tuple[Float[np.ndarray, "n d"], Int[np.ndarray, "n"]]:
    """The features and the class of each sample."""
    seed_everything(0)
    vectors, classes = [], []
    for batch in DataLoader(data, batch_size=64, collate_fn=collate):
        if batch.targets.ndim != 1 or batch.targets.is_floating_point():
            raise UserError("A probe needs data with one class per sample: choose another experiment.")
        inputs = to_device(batch, torch.device(device)).inputs
        vectors.append(features(model, *inputs).float().cpu())
        classes.append(batch.targets)
    return torch.cat(vectors).numpy(), torch.cat(classes).numpy()
