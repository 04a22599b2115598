"""Runs side by side: which settings differ, which runs only in seed or fold, and tables of results and costs."""

import math
import os
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from statistics import mean, stdev
from typing import Any
from urllib.parse import quote

import numpy as np
from markupsafe import Markup
from matplotlib import colormaps
from matplotlib.colors import to_hex

from ..config import short_names
from .report import render, render_table
from .runs import Run

NOTHING = "–"
# What config.json holds besides settings, and settings that differ between all runs.
OF_A_RUN = ("run", "objective", "metric", "lower_is_better", "out", "quiet", "resume")
OF_THE_LOSS = ("latent.", "masked.", "data.tokenizer.")  # settings that change what is predicted, and so the loss
REPEATED = ("train.seed", "data.fold")  # runs that differ in nothing else are the same experiment, repeated
OF_THE_SAMPLES = ("model.vocab_size", "model.target_mean", "model.target_std")  # follow from those of each fold
LONGEST_LABEL = 60
WIDEST = 48  # letters of a cell of text

FIRST_CELL = """
{% if best %}<b>{% endif %}
<span style="color: {{ row.color }}">●</span>
{% if row.link %}<a href="{{ row.link }}">{{ name }}</a>{% else %}{{ name }}{% endif %}
{% if best %} ★ best</b>{% endif %}
"""


@dataclass(frozen=True)
class Row:
    cells: dict[str, str]
    score: float
    """The larger, the better; -inf for no result."""
    color: str
    link: str = ""


@dataclass(frozen=True)
class Comparison:
    """Runs of one kind of data and one metric."""

    title: str
    groups: dict[str, list[Run]]
    """The runs that differ in nothing but the seed and the fold, by a label for their settings."""
    names: dict[str, str]
    """The dotted names of the settings that differ, and short ones."""

    @property
    def runs(self) -> list[Run]:
        return [run for group in self.groups.values() for run in group]

    @property
    def metric(self) -> str:
        return self.runs[0].metric

    @property
    def percent(self) -> bool:
        stated = [run.summary["percent"] for run in self.runs if "percent" in run.summary]
        return stated[0] if stated else self.metric in ("accuracy", "mAP")

    @property
    def selection(self) -> str:
        """The split that says which run is the best: validation, where all finished runs have one."""
        finished = [run for run in self.runs if run.finished]
        return "validation" if finished and all(run.result("validation") is not None for run in finished) else "test"

    @property
    def splits(self) -> list[str]:
        """The splits of which any run has a result, and the test split."""
        return [*["validation"] * any(run.result("validation") is not None for run in self.runs), "test"]

    @property
    def shared(self) -> dict[str, Any]:
        """The settings that do not differ."""
        return {k: v for k, v in self.runs[0].settings.items() if k not in self.names and k not in OF_A_RUN}

    @property
    def colors(self) -> list[str]:
        """Of each group."""
        count = len(self.groups)
        name, most = ("tab10", 10) if count <= 10 else ("tab20", 20) if count <= 20 else ("turbo", count)
        places = np.arange(count) if count <= 20 else np.linspace(0.05, 0.95, most)
        return [to_hex(color) for color in colormaps[name](places)]

    def show(self, value: float | None) -> str:
        return NOTHING if value is None else f"{value:.2%}" if self.percent else f"{value:.4g}"

    def score(self, result: float | None) -> float:
        return -math.inf if result is None else -result if self.runs[0].lower_is_better else result

    def group_rows(self) -> list[Row]:
        """The mean and standard deviation of each group's finished runs, the best first."""
        rows = []
        for (label, group), color in zip(self.groups.items(), self.colors, strict=True):
            finished = [run for run in group if run.finished]
            cells = {"setting": label}
            means = {}
            for split in self.splits:
                found = [run.final_result(split) for run in finished]
                results = [result for result in found if result is not None]
                means[split] = mean(results) if results else None
                spread = f" ± {self.show(stdev(results))}" if len(results) > 1 else ""
                cells[f"{split} {self.metric}"] = self.show(means[split]) + spread
                cells["n"] = str(len(results))
            rows.append(Row(cells | self._costs(finished), self.score(means[self.selection]), color))
        return sorted(rows, key=lambda row: -row.score)

    def run_rows(self, page: Path) -> list[Row]:
        """Each run, the best first. page: the file from which links lead to the runs' reports."""
        rows = []
        for group, color in zip(self.groups.values(), self.colors, strict=True):
            for run in group:
                cells = {"run": run.name if run.finished else f"{run.name} (not finished)"}
                cells |= {short: setting(run, name) for name, short in self.names.items()}
                cells |= {f"{split} {self.metric}": self.show(run.result(split)) for split in self.splits}
                cells |= {**self._costs([run]), "steps": run.steps}
                report = run.path / "report.html"
                link = quote(os.path.relpath(report.resolve(), page.resolve())) if report.exists() else ""
                rows.append(Row(cells, self.score(run.final_result(self.selection)), color, link))
        return sorted(rows, key=lambda row: -row.score)

    def _costs(self, runs: Sequence[Run]) -> dict[str, str]:
        """The baselines of runs and what their training took: means over them."""
        forms: dict[str, Callable[[float], str]] = {
            **{name: self.show for run in self.runs for name in run.baselines},
            "time": lambda seconds: str(timedelta(seconds=round(seconds))),
            "parameters": "{:,.0f}".format,
        }
        if any(run.tokens_per_second for run in self.runs):
            forms["tokens/s"] = "{:,.0f}".format
        costs = [
            {**run.baselines, "time": run.seconds, "parameters": run.parameters, "tokens/s": run.tokens_per_second}
            for run in runs
        ]
        known = {name: [cost[name] for cost in costs if cost.get(name) is not None] for name in forms}
        return {name: form(mean(known[name])) if known[name] else NOTHING for name, form in forms.items()}


def setting(run: Run, name: str) -> str:
    return str(run.settings[name]) if name in run.settings else NOTHING


def make_comparisons(runs: Sequence[Run], chosen: Collection[str] | None = None) -> list[Comparison]:
    """One comparison for each kind of data and each metric; losses of different objectives are different metrics, and
    so are those of one objective where settings change what is predicted.

    chosen: dotted names of the settings by which runs are grouped; settings that merely follow from these, such as the
    number of steps from the samples of a fold, do not count. None: all settings that differ.
    """
    kinds: dict[tuple[str, ...], list[Run]] = {}
    for run in runs:
        kinds.setdefault((*run.kind, _loss_of(run, runs), run.metric), []).append(run)
    return [_compare(" ".join(filter(None, kind)), group, chosen) for kind, group in kinds.items()]


def _loss_of(run: Run, runs: Sequence[Run]) -> str:
    """The objective, and the settings by which losses differ, if the metric is a loss."""
    if run.metric != "loss":
        return ""
    others = [each for each in runs if each.kind == run.kind and each.metric == "loss"]
    names = [name for name in run.settings if name.startswith(OF_THE_LOSS)]
    differing = short_names([name for name in names if len({setting(each, name) for each in others}) > 1])
    settings = ", ".join(f"{short}={setting(run, name)}" for name, short in differing.items())
    return " ".join(filter(None, (_objective_of(run, runs), settings)))


def _objective_of(run: Run, runs: Sequence[Run]) -> str:
    """Of an older run, which does not name it, that of its experiment."""
    own = run.settings.get("objective")
    like = {each.settings.get("objective") for each in runs if each.kind == run.kind and _same_experiment(each, run)}
    return str(own or (like - {None}).pop()) if own or len(like - {None}) == 1 else ""


def _same_experiment(one: Run, other: Run) -> bool:
    return one.settings["experiment"] == other.settings["experiment"]


def _compare(title: str, runs: list[Run], chosen: Collection[str] | None) -> Comparison:
    names = dict.fromkeys(name for run in runs for name in run.settings if name not in OF_A_RUN)
    differing = [name for name in names if len({setting(run, name) for run in runs}) > 1]
    if chosen is not None:
        differing = [name for name in differing if name in chosen]
    elif "data.fold" in differing:
        differing = [name for name in differing if name not in OF_THE_SAMPLES]
    names = short_names(differing)
    groups: dict[str, list[Run]] = {}
    for run in runs:
        differences = [f"{short}={setting(run, name)}" for name, short in names.items() if name not in REPEATED]
        groups.setdefault(", ".join(differences), []).append(run)
    return Comparison(title, {_label(text, group): group for text, group in groups.items()}, names)


def _label(settings: str, runs: Sequence[Run]) -> str:
    """The settings, or the names of the runs where that text is empty or long."""
    if 0 < len(settings) <= LONGEST_LABEL:
        return settings
    return runs[0].name + (f" and {len(runs) - 1} more" if len(runs) > 1 else "")


# --- Tables ---------------------------------------------------------------------------------------------------------


def _marked(rows: Sequence[Row]) -> list[bool]:
    """Which rows have the best result; none of them if fewer than two have a result."""
    scores = [row.score for row in rows if row.score > -math.inf]
    return [len(scores) > 1 and row.score == max(scores) for row in rows]


def as_text(rows: Sequence[Row]) -> str:
    """Columns of text; * marks the best row."""
    table = [list(rows[0].cells), *(list(row.cells.values()) for row in rows)]
    table = [[cell if len(cell) <= WIDEST else f"{cell[: WIDEST - 1]}…" for cell in line] for line in table]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = []
    for best, (first, *others) in zip([False, *_marked(rows)], table, strict=True):
        cells = [f"{first:<{widths[0]}}", *(f"{c:>{width}}" for c, width in zip(others, widths[1:], strict=True))]
        lines.append(f"{'*' if best else ' '} {'  '.join(cells)}")
    return "\n".join(lines)


def as_html(rows: Sequence[Row]) -> Markup:
    table = []
    for best, row in zip(_marked(rows), rows, strict=True):
        first, *others = row.cells.values()
        table.append((render(FIRST_CELL, row=row, name=first, best=best), *others))
    html = render_table(list(rows[0].cells), table)
    return render('<div style="overflow-x: auto; white-space: nowrap">{{ table }}</div>', table=html)
