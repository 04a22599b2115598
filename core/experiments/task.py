"""`ExperimentTask` and `Modality`: what an experiment and a modality add to the engine's task."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..data.dataset import NamedSamples
from ..explore import Sample
from ..training.loop import Fit
from ..training.task import Task
from .config import Experiment
from .features import Features
from .report import Panel
from .sizing import Sizing


@dataclass
class ExperimentTask(Task):
    """What an experiment trains, and what of it a run writes besides the metrics and checkpoints."""

    split_note: str = ""
    """One sentence about where the validation and the test split come from."""
    baseline: Callable[[], tuple[str, float] | None] = lambda: None
    """The name of a simpler method and its value of the objective's primary metric."""
    plots: Callable[[Fit], list[Panel]] = lambda fit: []
    """The experiment's own parts of the report."""
    looks: Callable[[Fit], list[Sample]] = lambda fit: []
    """A few test samples, and what the model attends to in them, for the explorer page beside the report."""
    head: tuple[str, ...] = ("head",)
    """What the names of the parameters begin with that are trained whatever else of the model is."""
    tuned_part: Callable[[Any], Any] = lambda model: model
    """The part of the model that --tune is about; the rest is trained as a whole."""
    on_tuned: Callable[[Any], None] = lambda model: None
    """Called with the model when it is known which of its parameters are trained."""
    saved_part: Callable[[Any], Any] = lambda model: model
    """The part of the trained model that is saved."""
    samples: NamedSamples = field(default_factory=dict)
    """The names and labels of all samples: a resumed run must have the same."""
    on_start: Callable[[Path], None] = lambda run: None
    """At the first start of a run, writes into its directory what was derived from the data (a vocabulary)."""
    on_save_model: Callable[[Path], None] = lambda folder: None
    """Writes into the directory of the trained model what belongs to its weights (a tokenizer)."""
    on_end: Callable[[Path], None] = lambda run: None
    """At the end of a run, writes files of its own into the run's directory."""


@dataclass(frozen=True)
class Modality:
    """What a modality adds to the command line."""

    name: str
    """Of its package."""
    experiments: Sequence[Callable[[], Experiment]]
    """Functions that make an experiment with its default settings; their docstrings are the help."""
    task: Callable[..., ExperimentTask]
    """Reads the data and builds the model of an experiment; called after the seed is set."""
    sizing: Callable[[Any, Collection[str]], Sizing] | None = None
    """Looks at the data of an experiment whose `size` is given by default: see `core.experiments.sizing`."""
    features: Features = lambda model, *inputs: model.features(*inputs)
    """One vector per sample, from a model and its inputs."""


def experiment_name(function: Callable[[], Experiment]) -> str:
    """The name of an experiment on the command line."""
    return function.__name__.replace("_", "-")


def default_of(modality: Modality, name: str) -> Experiment:
    """The experiment of this name, without options."""
    return next(function() for function in modality.experiments if experiment_name(function) == name)
