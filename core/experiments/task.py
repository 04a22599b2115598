"""What an experiment trains, and what a modality adds to the command line."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from torch import nn
from torch.utils.data import Dataset

from ..objectives.objective import Batch, Objective
from ..training.loop import Fit
from .config import Experiment
from .fixed import Samples
from .probe import Features
from .report import Panel


@dataclass
class Task:
    """What an experiment trains: all that a modality adds to the loop."""

    model: nn.Module
    objective: Objective
    train: Dataset
    test: Dataset
    collate: Callable[[list], Batch]
    mix: Callable[[Batch], Batch] | None = None
    """Changes a whole training batch on the device (mixup)."""
    in_memory: bool = False
    """Samples cost nothing to fetch."""
    baseline: Callable[[], tuple[str, float] | None] = lambda: None
    """The name of a simpler method and its value of the objective's primary metric."""
    panels: Callable[[Fit], list[Panel]] = lambda fit: []
    """Pictures for the report."""
    kept: Callable[[nn.Module], nn.Module] = lambda model: model
    """What of the trained model is saved."""
    samples: Samples = field(default_factory=dict)
    """What the data consist of; a resumed run must find the same."""
    first: Callable[[Path], None] = lambda run: None
    """At a run's first start, leaves in its directory what the data decided on (a vocabulary)."""
    beside: Callable[[Path], None] = lambda folder: None
    """Leaves in the trained model's directory what belongs to its weights (a tokenizer)."""
    finish: Callable[[Path], None] = lambda run: None
    """Leaves something of its own in the run's directory when it has ended."""


@dataclass(frozen=True)
class Modality:
    """A modality's part of the command line."""

    name: str
    """The package."""
    experiments: Sequence[Callable[[], Experiment]]
    """Named experiments; the docstring of each is its help."""
    task: Callable[[Experiment], Task]
    """Reads the data and builds the model of an experiment; called with the seed set."""
    features: Features = lambda model, *inputs: model.features(*inputs)
    """One vector per sample that a head of one's own could be put on."""


def spelt(function: Callable[[], Experiment]) -> str:
    """An experiment's name on the command line."""
    return function.__name__.replace("_", "-")
