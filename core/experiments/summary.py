"""The summary and the report of a run."""

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

from ..config import to_dict
from ..errors import UserError
from ..files import reason
from ..objectives.objective import Objective
from ..training.loop import Fit
from ..training.tracking import environment, read_metrics
from .config import Experiment
from .plots import training_curves, training_health
from .report import Panel, write_report
from .task import ExperimentTask

T = TypeVar("T")


def _spared(what: str, make: Callable[[], T]) -> T | None:
    """Something beside the trained model: where it cannot be made, the run has succeeded all the same."""
    try:
        return make()
    except Exception as error:
        warnings.warn(f"{what} could not be made: {reason(error)}", NotMade, stacklevel=2)
        return None


class NotMade(UserWarning):
    """Something beside the trained model that could not be made."""


def shown(objective: Objective) -> Callable[[float], str]:
    """How values of an objective's primary metric are written."""
    return "{:.2%}".format if objective.percent else "{:.4g}".format


def _report_failure(name: str, run: Path, task: ExperimentTask, experiment: Experiment, error: UserError) -> None:
    """What is known of a run that ended early, if it got anywhere."""
    rows = read_metrics(run)
    if rows:
        panels = [Panel("Why the run stopped", str(error), wide=True)]
        panels += [training_health(rows), training_curves(rows, task.objective.primary)]
        figures = {"steps": f"{rows[-1]['step']:,} of {experiment.train.steps:,}"}
        details = {"Configuration": to_dict(experiment), "Environment": environment()}
        write_report(run / "report.html", f"{name}: stopped", figures, panels, details)


def _summarise(
    name: str,
    task: ExperimentTask,
    found: Fit,
    trained: int,
    baseline: tuple[str, float] | None,
    start: float | None,
    seconds: float,
) -> dict[str, Any]:
    """start: accuracy of a linear probe before training."""
    return {
        "experiment": name,
        "metric": task.objective.primary,
        "percent": task.objective.percent,
        "metrics": found.metrics,
        "baseline": {baseline[0]: baseline[1]} if baseline else None,
        "steps": found.step,
        "train_seconds": round(found.seconds, 2),
        "total_seconds": round(seconds, 2),
        "parameters": sum(p.numel() for p in found.model.parameters()),
        "trained_parameters": trained,
        **({} if start is None else {"linear_probe": start}),
        "train_samples": len(task.train),
        "test_samples": len(task.test),
        "precision": found.precision,
        "device": found.device,
        **environment(),
    }


def _report(
    name: str, run: Path, task: ExperimentTask, found: Fit, experiment: Experiment, summary: Mapping[str, Any]
) -> Path:
    metric, show, rows = task.objective.primary, shown(task.objective), read_metrics(run)
    value, start = found.metrics[metric], summary.get("linear_probe")
    baseline = next(iter((summary["baseline"] or {}).items()), None)
    figures = {f"test {metric}": show(value)}
    if baseline:
        figures[baseline[0]] = show(baseline[1])
    figures |= {
        "training time": f"{found.seconds:.0f} s",
        "steps": f"{found.step:,}",
        **_speed(rows),
        "parameters": f"{summary['parameters']:,}",
        **(_cost(summary["trained_parameters"], summary["parameters"]) if experiment.tune != "full" else {}),
        **({} if start is None else _gain(value - start)),
        "training samples": f"{summary['train_samples']:,}",
        "test samples": f"{summary['test_samples']:,}",
        "precision": f"{found.precision}, {found.device}",
    }
    panels = [
        training_curves(rows, metric, baseline),
        *(_spared("The figures", lambda: task.plots(found)) or []),
        training_health(rows),
    ]
    details = {"Summary": summary, "Configuration": to_dict(experiment)}
    write_report(run / "report.html", f"{name}: {metric} {show(value)}", figures, panels, details)
    return run / "report.html"


def _cost(trained: int, parameters: int) -> dict[str, str]:
    """What training a part takes beside the weights: gradients and AdamW's two averages, in fp32."""
    part, whole = (3 * 4 * count / 2**20 for count in (trained, parameters))
    return {
        "of them trained": f"{trained:,} ({trained / parameters:.1%})",
        "gradients and optimiser state": f"{part:,.1f} MiB (all: {whole:,.1f})",
    }


def _gain(gain: float) -> dict[str, str]:
    return {"over a linear probe of the start": f"{100 * gain:+.1f} points"}


def _speed(rows: list[dict[str, Any]]) -> dict[str, str]:
    """Medians over the run."""
    shown = {
        "tokens_per_second": ("tokens a second", "{:,.0f}"),
        "mfu": ("of the device's matrix rate", "{:.0%}"),
        "data_wait": ("waiting for data", "{:.1%}"),
    }
    found = {name: [row[name] for row in rows if name in row] for name in shown}
    return {label: form.format(median(found[name])) for name, (label, form) in shown.items() if found[name]}
