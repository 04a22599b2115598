"""One training loop for every modality."""

from .cli import predict_command
from .command import probe_command, train_command
from .config import Experiment, TrainConfig
from .data import Sample, few_per_class, read_folder, read_manifest, stratified_split
from .experiment import Modality, Task
from .loop import fit
from .report import Panel

__all__ = [
    "Experiment",
    "Modality",
    "Panel",
    "Sample",
    "Task",
    "TrainConfig",
    "few_per_class",
    "fit",
    "predict_command",
    "probe_command",
    "read_folder",
    "read_manifest",
    "stratified_split",
    "train_command",
]
