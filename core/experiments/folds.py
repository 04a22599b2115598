"""The result of a k-fold cross-validation: mean and deviation over its runs, each tested on another fold."""

from collections.abc import Collection, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from ..files import write_json
from ..objectives.interval import wilson_interval
from .comparison import Comparison, make_comparisons
from .runs import Run, read_runs
from .summary import shown_interval

SUMMARY = "summary.json"


def summarise_folds(name: str, out: Path, runs: Sequence[Path], chosen: Collection[str]) -> None:
    """Print the results, and write them into the directory of the runs.

    name: of the experiment. chosen: dotted names of the settings that the runs were given different values of.
    """
    summaries = []
    for comparison in make_comparisons(read_runs(runs), chosen):
        for setting, group in comparison.groups.items():
            several = len(comparison.groups) > 1
            found = fold_summary(comparison, group)
            summaries.append({"experiment": name, **({"setting": setting} if several else {}), **found})
            show, interval = comparison.show, found.get("interval")
            over = f"mean and deviation of {len(group)} runs, which test {found['test_samples']:,} samples"
            over += "" if interval is None else f"; of all these, 95 % interval {shown_interval(interval)}"
            print(
                f"{name}{f', {setting}' if several else ''}: test {comparison.metric} {show(found['mean'])} ± "
                f"{show(found['deviation'])} ({over})"
            )
    write_json(out / SUMMARY, summaries)
    print(f"summary: {out / SUMMARY}")


def fold_summary(comparison: Comparison, runs: Sequence[Run]) -> dict[str, Any]:
    """Mean and standard deviation of the test metric over runs, and the interval of an accuracy over all their samples.

    There is no interval where a fold was tested more than once, with several seeds.
    """
    folds = [run.settings["data.fold"] for run in runs]
    results = [run.summary["metrics"][comparison.metric] for run in runs]
    counts = [run.summary["test_samples"] for run in runs]
    once = len(set(folds)) == len(folds) and all("interval" in run.summary for run in runs)
    share = sum(result * count for result, count in zip(results, counts, strict=True)) / sum(counts)
    return {
        "metric": comparison.metric,
        "mean": mean(results),
        "deviation": stdev(results) if len(results) > 1 else 0.0,
        **({"interval": wilson_interval(share, sum(counts))} if once else {}),
        "test_samples": sum(counts),
        "folds": runs[0].settings.get("data.folds", len(set(folds))),  # ESC-50 comes with its own
        "runs": [
            {"fold": fold, "seed": run.settings["train.seed"], comparison.metric: result, "test_samples": count}
            for fold, run, result, count in zip(folds, runs, results, counts, strict=True)
        ],
    }
