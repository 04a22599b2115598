"""Figures of several seeds in the cells of a table."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from ..transfer.commands import Commands, Options

Summaries = Sequence[Mapping[str, Any]]
"""summary.json of runs that differ in their seeds alone."""


def accuracy(runs: Summaries) -> str:
    """Median and, in brackets, each seed."""
    found = [run["metrics"]["accuracy"] for run in runs]
    return f"{statistics.median(found):.1%} ({', '.join(f'{100 * each:.1f}' for each in found)})"


def mean_accuracy(rows: Sequence[Summaries]) -> str:
    """Of several tests: mean of the medians and, in brackets, the mean of each seed."""
    found = [[run["metrics"]["accuracy"] for run in runs] for runs in rows]
    seeds = (statistics.mean(each) for each in zip(*found, strict=True))
    middle = statistics.mean(statistics.median(each) for each in found)
    return f"{middle:.1%} ({', '.join(f'{100 * each:.1f}' for each in seeds)})"


def seeded(commands: Commands, name: str, command: str, options: Options, seeds: Sequence[int]) -> list[dict[str, Any]]:
    """The summaries of a recipe, one for each seed."""
    return [commands.train(f"{name}-{seed}", command, {**options, "train.seed": seed}) for seed in seeds]


def budget(runs: Summaries) -> str:
    """Minutes and PFLOP of training, the median over the runs, and the size of the model."""
    minutes, pflop = (statistics.median(run[name] for run in runs) for name in ("train_seconds", "pflop"))
    return f"{minutes / 60:.1f} min, {pflop:.2g} PFLOP, {runs[0]['parameters'] / 1e6:.2g} M parameters"
