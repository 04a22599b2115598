"""Runs, read back from their directories."""

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Annotated, Any, NotRequired

from annotated_types import Interval
from pydantic import ConfigDict, with_config
from typing_extensions import TypedDict

from ..config import Natural, NotNegative, flatten
from ..errors import UserError
from ..files import read_json
from ..training.tracking import read_metrics

USUAL_METRICS = ("accuracy", "mAP", "r2", "loss")  # the most likely first, for runs that do not name their metric
LARGEST = 1e300  # of numbers that can be drawn


@with_config(ConfigDict(extra="allow"))
class Training(TypedDict):
    steps: int
    batch_size: int


@with_config(ConfigDict(extra="allow"))
class Settings(TypedDict):
    """config.json: the settings whose types matter to a comparison."""

    experiment: str
    train: Training
    metric: NotRequired[str]
    lower_is_better: NotRequired[bool]


@with_config(ConfigDict(extra="allow"))
class Summary(TypedDict):
    """summary.json of a finished run; older runs have fewer entries."""

    metrics: dict[str, float]
    """Of the test set."""
    validation: NotRequired[dict[str, float]]
    metric: NotRequired[str]
    lower_is_better: NotRequired[bool]
    percent: NotRequired[bool]
    baseline: NotRequired[dict[str, float] | None]
    steps: NotRequired[Natural]
    train_seconds: NotRequired[NotNegative]
    parameters: NotRequired[Annotated[int, Interval(ge=0, le=2**63)]]


@dataclass(frozen=True)
class Run:
    path: Path
    settings: dict[str, Any]
    """config.json, by dotted names."""
    summary: dict[str, Any]
    """summary.json of a finished run; otherwise empty."""
    rows: list[dict[str, Any]]
    """metrics.jsonl."""
    metric: str = ""
    name: str = ""

    @property
    def finished(self) -> bool:
        return bool(self.summary)

    @property
    def stated_metric(self) -> str | None:
        """The primary metric, as the run names it; None if it is old."""
        return self.summary.get("metric") or self.settings.get("metric")

    @property
    def lower_is_better(self) -> bool:
        """Of its metric; older runs do not say it."""
        stated = self.summary.get("lower_is_better", self.settings.get("lower_is_better"))
        return self.metric == "loss" if stated is None else stated

    @property
    def kind(self) -> tuple[str, ...]:
        """Modality and data. Results of different kinds cannot be compared."""
        return tuple(str(self.settings.get(name) or "") for name in ("modality", "data.name"))

    def result(self, split: str) -> float | None:
        """The metric in the last evaluation of the validation or the test set."""
        if self.summary:
            return self.summary.get("metrics" if split == "test" else "validation", {}).get(self.metric)
        logged = list(self.series(f"{split}_{self.metric}").values())
        return logged[-1] if logged else None

    def final_result(self, split: str) -> float | None:
        """The result, if the run is finished and its result is a number that can be drawn."""
        result = self.result(split) if self.summary else None
        return result if result is not None and is_drawable(result) else None

    @property
    def evaluations(self) -> dict[int, float]:
        """The metric by step, of the validation set; runs without one were evaluated on the test set."""
        return self.series(f"validation_{self.metric}") or self.series(f"test_{self.metric}")

    @property
    def baselines(self) -> dict[str, float]:
        return self.summary.get("baseline") or {}

    @property
    def parameters(self) -> int | None:
        return self.summary.get("parameters")

    @property
    def seconds(self) -> float | None:
        """The time of the training steps, from the logged speed: the summary does not count what a resume repeated."""
        spent, before, seen = 0.0, 0, self.series("samples")
        for step, speed in self.series("samples_per_second").items():
            # Older runs did not log the samples.
            samples = seen[step] if step in seen else step * self.settings["train.batch_size"]
            if speed > 0:
                spent, before = spent + max(samples - before, 0) / speed, samples
        return min(spent, 1e9) or self.summary.get("train_seconds")

    @property
    def tokens_per_second(self) -> float | None:
        logged = self.series("tokens_per_second")
        return median(logged.values()) if logged else None

    @property
    def steps(self) -> str:
        done = self.summary.get("steps") or (self.rows[-1]["step"] if self.rows else 0)
        return f"{done:,}" if self.summary else f"{done:,} of {self.settings['train.steps']:,}"

    def series(self, name: str) -> dict[int, float]:
        """The logged values of one name, by step."""
        return {row["step"]: float(row[name]) for row in self.rows if is_drawable(row.get(name, math.nan))}


def is_drawable(value: float | int) -> bool:
    """Whether a number is finite, and small enough for a plot."""
    return abs(value) <= LARGEST


def read_runs(paths: Sequence[Path]) -> list[Run]:
    """The runs among the paths. What is not a run is skipped with a message."""
    runs = []
    for path in {path.resolve(): path for path in paths}.values():
        if not path.exists():
            raise UserError(f"There is no {path}: name the directories of runs, such as runs/*.")
        try:
            if (path / "config.json").exists() and "experiment" in read_json(path / "config.json"):
                settings = flatten(read_json(path / "config.json", Settings))
                summary = read_json(path / "summary.json", Summary) if (path / "summary.json").exists() else {}
                runs.append(Run(path, settings, summary, read_metrics(path)))
                continue
        except UserError as error:
            print(f"skipped {path}: {error}", file=sys.stderr)
            continue
        problem = f"a sweep, whose runs are {path}/*" if (path / "sweep.json").exists() else "not a run"
        print(f"skipped {path}: {problem}", file=sys.stderr)
    if not runs:
        raise UserError("There is nothing to compare: name the directories of runs, such as runs/*.")
    return _with_metrics(runs)


def _with_metrics(runs: Sequence[Run]) -> list[Run]:
    """Each run with its metric. An older run, which does not name it, has that of its kind."""
    known: dict[tuple, str] = {}
    for run in runs:
        if usual := next((name for name in USUAL_METRICS if name in _evaluated(run)), None):
            known.setdefault(run.kind, usual)
    known |= {run.kind: run.stated_metric for run in runs if run.stated_metric is not None}
    named = []
    for run in runs:
        likeliest, evaluated = known.get(run.kind, "loss"), _evaluated(run)
        metric = next((name for name in (likeliest, *USUAL_METRICS) if name in evaluated), likeliest)
        if run.summary and run.stated_metric is None:
            print(f"{run.path} does not name its metric: {metric} is taken.", file=sys.stderr)
        named.append(replace(run, metric=run.stated_metric or metric))
    return named


def _evaluated(run: Run) -> set[str]:
    """The names of the metrics of a run."""
    splits = ("validation_", "test_")
    names = {name for row in run.rows for name in row}
    logged = {name.removeprefix(split) for name in names for split in splits if name.startswith(split)}
    return set(run.summary.get("metrics", ())) or logged
