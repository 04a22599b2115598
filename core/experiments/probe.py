"""Probes: how well classes can be predicted from a model's frozen features, by logistic regression and by neighbours.

`python -m vision.probe EXPERIMENT --init MODEL` probes any model on the data of any experiment with classes, and
`probing` makes of labelled data what a task needs to have its model probed while it is trained.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from torch.utils.data import Subset

from ..config import Count, configclass
from ..data.splits import DataSplits
from ..errors import UserError
from ..objectives.objective import Batch
from .features import Features, extract_features

MAX_SAMPLES = 20_000


@configclass
class ProbeConfig:
    path: Path | None = None
    """Labelled files, a folder of classes or a manifest (of texts a manifest): before training and at every evaluation,
    probes are trained on the features of their training part and scored on their validation part."""
    samples: Count = 2000
    """Training samples of the probes, drawn at random, and at most as many to score them on."""
    neighbours: Count = 20
    """Nearest samples that vote."""


class ProbeResult(NamedTuple):
    """Accuracies on the samples to score with."""

    linear: float
    """Of logistic regression."""
    neighbours: float
    """Of a vote among the nearest neighbours by angle, weighted by nearness (Wu et al. 2018, section 3.4)."""


def probe(
    model: nn.Module,
    features: Features,
    train: Any,
    test: Any,
    collate: Callable[[list], Batch],
    neighbours: int = ProbeConfig.neighbours,
) -> ProbeResult:
    """Probe the model's features, on its device. train, test: data sets with one class per sample, to train the probes
    on and to score them on."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    (vectors, classes), (others, targets) = (extract_features(model, features, data, collate) for data in (train, test))
    if classes.ndim != 1 or not np.issubdtype(classes.dtype, np.integer):
        raise UserError("A probe needs data with one class per sample: choose another experiment.")
    if len(np.unique(classes)) < 2:
        raise UserError("A probe needs two classes at least, and its training samples are of one: choose other data.")
    linear = make_pipeline(StandardScaler(), LogisticRegression(max_iter=500))
    vote = KNeighborsClassifier(min(neighbours, len(vectors)), weights="distance", metric="cosine")
    return ProbeResult(*(float((m.fit(vectors, classes).predict(others) == targets).mean()) for m in (linear, vote)))


def some_of(data: Any, count: int) -> Subset:
    """So many samples, drawn at random but always the same; all if there are fewer."""
    return Subset(data, torch.randperm(len(data), generator=torch.Generator().manual_seed(0))[:count].tolist())


def probing(
    data: DataSplits, collate: Callable[[list], Batch], features: Features, config: ProbeConfig
) -> Callable[[nn.Module], dict[str, float]]:
    """What a task takes as `measure`: the accuracy of probes, as `probe_linear` and `probe_neighbours`.

    data: with classes and without augmentation. The probes are trained on the training part and scored on the
    validation part; nobody looks at the test part. features: of the model that the task trains.
    """
    train, validation = some_of(data.train, config.samples), some_of(data.validation, config.samples)

    def measure(model: nn.Module) -> dict[str, float]:
        found = probe(model, features, train, validation, collate, config.neighbours)
        return {f"probe_{name}": value for name, value in found._asdict().items()}

    return measure
