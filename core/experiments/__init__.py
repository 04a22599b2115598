"""A run around the engine: the command line, the experiment, the run's directory, the report."""

from .cli import predict_command
from .command import probe_command, train_command
from .config import Experiment
from .report import Panel
from .task import ExperimentTask, Modality

__all__ = ["Experiment", "ExperimentTask", "Modality", "Panel", "predict_command", "probe_command", "train_command"]
