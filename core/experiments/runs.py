"""Runs read back from their directories, and grouped: which settings differ, and which differ in the seed alone."""

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, NotRequired

import matplotlib.pyplot as plt
import numpy as np
from annotated_types import Interval
from matplotlib.colors import to_hex
from pydantic import ConfigDict, with_config
from typing_extensions import TypedDict

from ..config import Natural, NotNegative, flatten, short_names
from ..errors import UserError
from ..files import read_json
from ..training.tracking import read_metrics

GUESSES = ("accuracy", "mAP", "r2", "loss")  # the likeliest first, for runs that do not name their metric
NOTHING = "–"
OF_A_RUN = ("run", "out", "resume")  # of config.json, what no two runs have alike
LARGEST = 1e300  # figures beyond this cannot be drawn


@with_config(ConfigDict(extra="allow"))
class Training(TypedDict):
    steps: int
    batch_size: int


@with_config(ConfigDict(extra="allow"))
class Settings(TypedDict):
    """config.json, as far as a comparison asks for more than equality."""

    experiment: str
    train: Training


@with_config(ConfigDict(extra="allow"))
class Summary(TypedDict):
    """summary.json of a finished run; older ones say less."""

    metrics: dict[str, float]
    metric: NotRequired[str]
    percent: NotRequired[bool]
    baseline: NotRequired[dict[str, float] | None]
    steps: NotRequired[Natural]
    train_seconds: NotRequired[NotNegative]
    parameters: NotRequired[Annotated[int, Interval(ge=0, le=2**63)]]


@dataclass(frozen=True)
class Run:
    path: Path
    settings: dict[str, Any]
    """Of config.json, by their dotted names."""
    summary: dict[str, Any]
    """Of a finished run, else empty."""
    rows: list[dict[str, Any]]
    metric: str = ""
    name: str = ""

    @property
    def kind(self) -> tuple:
        """Figures of different kinds do not compare."""
        return tuple(str(self.settings.get(name) or "") for name in ("modality", "data.name"))

    @property
    def result(self) -> float | None:
        """The metric when last evaluated."""
        evaluated = list(self.series(f"test_{self.metric}").values())
        return self.summary["metrics"].get(self.metric) if self.summary else evaluated[-1] if evaluated else None

    @property
    def seconds(self) -> float | None:
        """Spent on training steps, told from each row's speed: the summary knows nothing of what a resume cut off."""
        spent, before = 0.0, 0
        for step, speed in self.series("samples_per_second").items():
            if speed > 0:
                spent, before = spent + (step - before) * self.settings["train.batch_size"] / speed, step
        return min(spent, 1e9) or self.summary.get("train_seconds")

    def setting(self, name: str) -> str:
        return str(self.settings[name]) if name in self.settings else NOTHING

    def series(self, name: str) -> dict[int, float]:
        """A logged figure by its step."""
        return {row["step"]: row[name] for row in self.rows if is_drawable(row.get(name, math.nan))}


@dataclass(frozen=True)
class Setting:
    """Runs that differ in nothing but the seed."""

    label: str
    color: str
    runs: list[Run]

    @property
    def results(self) -> list[float]:
        """Of the finished runs."""
        found = [run.result for run in self.runs if run.summary and run.result is not None]
        return [result for result in found if is_drawable(result)]


@dataclass(frozen=True)
class Comparison:
    """Runs whose figures may stand side by side."""

    title: str
    settings: list[Setting]
    names: dict[str, str]
    """What differs, by its dotted name: what it is called in a table."""

    @property
    def runs(self) -> list[Run]:
        return [run for setting in self.settings for run in setting.runs]

    @property
    def metric(self) -> str:
        return self.runs[0].metric

    @property
    def percent(self) -> bool:
        said = [run.summary["percent"] for run in self.runs if "percent" in run.summary]
        return said[0] if said else self.metric in ("accuracy", "mAP")

    @property
    def baselines(self) -> list[str]:
        return list(dict.fromkeys(name for run in self.runs for name in run.summary.get("baseline") or ()))

    def show(self, value: float | int | None) -> str:
        return NOTHING if value is None else f"{value:.2%}" if self.percent else f"{value:.4g}"

    def worth(self, value: float | int | None) -> float:
        """More is better."""
        if value is None or not is_drawable(value):
            return -math.inf
        return -value if self.metric == "loss" else value


def is_drawable(value: float | int) -> bool:
    """Whether a figure is finite, and small enough for a plot."""
    return abs(value) <= LARGEST


def read_runs(paths: Sequence[Path]) -> list[Run]:
    """What is no run is skipped with a word."""
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
        if (path / "sweep.json").exists():
            print(f"skipped {path}: a sweep, whose runs are {path}/*", file=sys.stderr)
        else:
            print(f"skipped {path}: not a run", file=sys.stderr)
    if not runs:
        raise UserError("There is nothing to compare: name the directories of runs, such as runs/*.")
    return runs


def name_metrics(runs: Sequence[Run]) -> list[Run]:
    """Each run with its metric. One that does not name it, being old or not finished, has that of its kind."""
    known: dict[tuple, str] = {}
    for run in runs:
        if guess := next((name for name in GUESSES if name in _evaluated(run)), None):
            known.setdefault(run.kind, guess)
    known |= {run.kind: run.summary["metric"] for run in runs if "metric" in run.summary}
    named = []
    for run in runs:
        likeliest, found = known.get(run.kind, "loss"), _evaluated(run)
        metric = next((name for name in (likeliest, *GUESSES) if name in found), likeliest)
        if run.summary and "metric" not in run.summary:
            print(f"{run.path} does not name its metric: {metric} is taken.", file=sys.stderr)
        named.append(replace(run, metric=run.summary.get("metric", metric)))
    return named


def _evaluated(run: Run) -> set[str]:
    """The figures of the test set that a run has."""
    logged = (name for row in run.rows for name in row if name.startswith("test_"))
    return set(run.summary.get("metrics", ())) or {name.removeprefix("test_") for name in logged}


def make_comparisons(runs: Sequence[Run]) -> list[Comparison]:
    groups: dict[tuple, list[Run]] = {}
    for run in runs:
        groups.setdefault((*run.kind, run.metric), []).append(run)
    comparisons = []
    for kind, group in groups.items():
        names = list(dict.fromkeys(name for run in group for name in run.settings if name not in OF_A_RUN))
        names = [name for name in names if any(run.settings.get(name) != group[0].settings.get(name) for run in group)]
        called = short_names(names)
        settings: dict[str, list[Run]] = {}
        for run in group:
            parts = [f"{called[name]}={run.setting(name)}" for name in names if name != "train.seed"]
            settings.setdefault(", ".join(parts), []).append(run)
        colors = plt.get_cmap("tab10" if len(settings) <= 10 else "tab20").colors
        if len(settings) > len(colors):
            colors = plt.get_cmap("turbo")(np.linspace(0.05, 0.95, len(settings)))
        made = [
            Setting(_label(label, members), to_hex(color), members)
            for (label, members), color in zip(settings.items(), colors, strict=False)
        ]
        title = " ".join(str(part) for part in kind if part)
        comparisons.append(Comparison(title, made, called))
    return comparisons


def _label(settings: str, runs: Sequence[Run]) -> str:
    if 0 < len(settings) <= 60:
        return settings
    return runs[0].name + (f" and {len(runs) - 1} more" if len(runs) > 1 else "")
