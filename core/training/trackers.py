"""Trackers of experiments that a run also reports to, through Accelerate: Weights & Biases, MLflow and trackio."""

import json
import os
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from accelerate.tracking import GeneralTracker, MLflowTracker, TrackioTracker, WandBTracker
from accelerate.utils import is_mlflow_available, is_trackio_available, is_wandb_available

from ..config import flatten
from ..errors import UserError
from ..files import reason, write_text
from .config import TrackerName

AVAILABLE = {"wandb": is_wandb_available, "mlflow": is_mlflow_available, "trackio": is_trackio_available}
PROJECT = "trivium"  # unless the tracker's own variable of the environment names another


def check_trackers(names: Sequence[TrackerName]) -> None:
    for name in names:
        if not AVAILABLE[name]():
            raise UserError(f"--train.track {name} needs the package {name}: pip install {name}.")


class ReportedRun:
    """A run as one tracker shows it. A tracker that fails is left, and training goes on."""

    def __init__(self, name: TrackerName, folder: Path, run_id: str):
        """run_id: of the run, under which a tracker goes on with it when it is resumed."""
        self.name, self.folder = name, folder
        self.tracker: GeneralTracker | None = None
        self.configured = False
        self._try(lambda: self._start(run_id))

    def _start(self, run_id: str) -> None:
        self.tracker = tracker = MAKE[self.name](self.folder, run_id)
        tracker.start()
        if isinstance(tracker, MLflowTracker):
            write_text(self.folder / MLFLOW_RUN, tracker.tracker.info.run_id)

    def log(self, step: int, metrics: dict[str, Any]) -> None:
        """What is a number; before the first row, the run's configuration."""
        numbers = {self._named(name): value for name, value in metrics.items() if isinstance(value, int | float)}
        tracker = self.tracker
        if tracker is None or not numbers:
            return
        config = self.folder / "config.json"
        if not self.configured and config.exists():
            self.configured = True
            settings = flatten(json.loads(config.read_text(encoding="utf-8")))
            self._try(lambda: tracker.store_init_configuration({name: str(value) for name, value in settings.items()}))
        self._try(lambda: tracker.log(numbers, step=step))

    def _named(self, metric: str) -> str:
        """MLflow may keep metrics in files, where `grad_norm` cannot stand beside `grad_norm/output`."""
        return metric.replace("/", ".") if self.name == "mlflow" else metric

    def finish(self) -> None:
        if self.tracker is not None:
            self._try(self.tracker.finish)

    def _try(self, do: Callable[[], Any]) -> None:
        try:
            do()
        except Exception as error:
            with suppress(Exception):
                if self.tracker is not None:
                    self.tracker.finish()
            self.tracker = None
            warnings.warn(f"{self.name} cannot be reached: {reason(error)}. Training goes on without it.", stacklevel=2)


MLFLOW_RUN = "mlflow-run.txt"  # the id that MLflow gave a run


def _wandb(folder: Path, run_id: str) -> GeneralTracker:
    project = os.environ.get("WANDB_PROJECT", PROJECT)
    return WandBTracker(project, name=folder.name, id=run_id or None, resume="allow", dir=str(folder))


def _mlflow(folder: Path, run_id: str) -> GeneralTracker:
    own = folder / MLFLOW_RUN
    if own.exists():
        return MLflowTracker(PROJECT, run_id=own.read_text(encoding="utf-8").strip())
    return MLflowTracker(PROJECT, run_name=folder.name)


def _trackio(folder: Path, run_id: str) -> GeneralTracker:
    return TrackioTracker(os.environ.get("TRACKIO_PROJECT", PROJECT), name=folder.name, resume="allow")


MAKE: dict[str, Callable[[Path, str], GeneralTracker]] = {"wandb": _wandb, "mlflow": _mlflow, "trackio": _trackio}
