"""Runs of recipes with several seeds, as rows of a table: accuracy, time and operations."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from ..transfer.commands import Commands, Options, cell

COLUMNS = ("test accuracy", "minutes", "PFLOP")


def run_seeds(
    commands: Commands, name: str, command: str, options: Options, seeds: Sequence[int]
) -> list[dict[str, Any]]:
    """The summaries of a recipe's runs, one for each seed. command: such as `text.train sst2`."""
    return [commands.train(f"{name}-{seed}", command, {**options, "train.seed": seed}) for seed in seeds]


def row_of(summaries: Sequence[Mapping[str, Any]]) -> tuple[str, str, str]:
    """Accuracy, mean and each seed; minutes of training and PFLOP, both of a run with its pre-training."""
    accuracies = [summary["metrics"]["accuracy"] for summary in summaries]
    minutes = statistics.mean(summary["train_seconds"] for summary in summaries) / 60
    operations = [summary["pflop"] for summary in summaries if "pflop" in summary]
    return cell(accuracies), f"{minutes:.1f}", f"{statistics.mean(operations):.3f}" if operations else ""


def table(rows: Mapping[str, Sequence[str]]) -> str:
    """In Markdown."""
    lines = [f"| | {' | '.join(COLUMNS)} |", f"|{'---|' * (1 + len(COLUMNS))}"]
    return "\n".join([*lines, *(f"| {name} | {' | '.join(cells)} |" for name, cells in rows.items())])
