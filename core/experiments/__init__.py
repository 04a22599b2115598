"""A run around the engine: the command line, the experiment, the run's directory, the report."""

from .cli import predict_command
from .command import probe_command, train_command
from .config import Experiment
from .report import Panel
from .task import Modality, Task

__all__ = ["Experiment", "Modality", "Panel", "Task", "predict_command", "probe_command", "train_command"]
