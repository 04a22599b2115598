"""summary.json, and the content of the report."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

from ..config import to_dict
from ..errors import UserError
from ..explore import write_page
from ..files import reason
from ..objectives.classification import Classification
from ..objectives.objective import Objective
from ..training.loop import Fit
from ..training.tracking import environment, read_metrics
from .config import Experiment
from .plots import (
    features_panel,
    first_and_last,
    measured_names,
    shown_change,
    shown_name,
    training_curves,
    training_health,
)
from .report import Panel, render, write_report
from .task import ExperimentTask

T = TypeVar("T")
EXPLORER = "explore.html"
LINK = '<a href="{{ page }}">Point at test samples</a> to see what the model attends to in each layer and head.'
QUICK = 10**8  # attention weights of an explorer, which are a matter of seconds


class NotMadeWarning(UserWarning):
    """A part of the results that is not essential could not be made."""


def try_to_make(what: str, make: Callable[[], T]) -> T | None:
    """Make a part of the results without which the run is a success all the same; a warning if that fails."""
    try:
        return make()
    except Exception as error:
        warnings.warn(f"{what} could not be made: {reason(error)}", NotMadeWarning, stacklevel=2)
        return None


def metric_format(objective: Objective) -> Callable[[float], str]:
    """How values of the objective's primary metric are written."""
    return "{:.2%}".format if objective.percent else "{:.4g}".format


def shown_interval(interval: Sequence[float]) -> str:
    """Of a share, in percent."""
    return " to ".join(f"{100 * end:.1f}" for end in interval) + " %"


def summarise(
    name: str,
    task: ExperimentTask,
    result: Fit,
    trained: int,
    baseline: tuple[str, float] | None,
    probed: float | None,
    rows: Sequence[Mapping[str, Any]],
    seconds: float,
) -> dict[str, Any]:
    """summary.json.

    trained: parameters. probed: the accuracy of a linear probe before training. rows: of metrics.jsonl. seconds: of the
    whole run.
    """
    changes = first_and_last(rows)
    certainty = {}
    if isinstance(task.objective, Classification):
        certainty["interval"] = task.objective.interval(result.results)
        certainty["calibration_error"] = task.objective.calibration(result.results)
    start, end = ({name: values[at] for name, values in changes.items()} for at in (0, 1))
    return {
        "experiment": name,
        "metric": task.objective.primary,
        "lower_is_better": task.objective.lower_is_better,
        "percent": task.objective.percent,
        "metrics": result.metrics,
        **certainty,
        "validation": result.validation,
        "baseline": {baseline[0]: baseline[1]} if baseline else None,
        "steps": result.step,
        **({} if result.best_step is None else {"best_step": result.best_step}),
        "train_seconds": round(result.seconds, 2),
        "total_seconds": round(seconds, 2),
        **({"pflop": round(result.operations / 1e15, 6)} if result.operations else {}),
        "parameters": sum(p.numel() for p in result.model.parameters()),
        "trained_parameters": trained,
        **({} if probed is None else {"linear_probe": probed}),
        **({"start": start, "end": end} if changes else {}),
        "train_samples": len(task.train),
        "validation_samples": 0 if task.validation is None else len(task.validation),
        "test_samples": len(task.test),
        **({"splits": task.split_note} if task.split_note else {}),
        "precision": result.precision,
        "device": result.device,
        **environment(),
    }


def write_run_report(
    name: str, run: Path, task: ExperimentTask, result: Fit, experiment: Experiment, summary: Mapping[str, Any]
) -> Path:
    """report.html of a finished run."""
    metric, show, rows = task.objective.primary, metric_format(task.objective), read_metrics(run)
    value, probed = result.metrics[metric], summary.get("linear_probe")
    baseline = next(iter((summary["baseline"] or {}).items()), None)
    figures = {f"test {metric}": show(value)}
    if "interval" in summary:
        figures["95 % confidence interval"] = shown_interval(summary["interval"])
        figures["expected calibration error"] = f"{summary['calibration_error']:.2%}"
    if result.validation:
        figures[f"validation {metric}"] = show(result.validation[metric])
    if baseline:
        figures[baseline[0]] = show(baseline[1])
    figures |= {"training time": f"{result.seconds:.0f} s", "steps": f"{result.step:,}", **_speed(rows)}
    if result.operations:
        figures["floating-point operations"] = f"{result.operations:.2g}"
    if result.best_step is not None:
        figures["best step"] = f"{result.best_step:,}"
    figures["parameters"] = f"{summary['parameters']:,}"
    if experiment.tune != "full":
        figures |= _memory(summary["trained_parameters"], summary["parameters"])
    if probed is not None:
        figures["over a linear probe of the start"] = f"{100 * (value - probed):+.1f} points"
    changes = first_and_last(rows)
    figures |= {shown_name(name): shown_change(name, changes[name]) for name in measured_names(rows)}
    for split in ("train", "validation", "test"):
        figures[f"{split} samples"] = f"{summary[f'{split}_samples']:,}"
    figures["precision"] = f"{result.precision}, {result.device}"
    features = features_panel(rows)
    panels = [
        training_curves(rows, metric, baseline),
        *([] if features is None else [features]),
        *(try_to_make("The plots", lambda: task.plots(result)) or []),
        training_health(rows),
    ]
    if try_to_make("The explorer", lambda: write_explorer(run / EXPLORER, name, task, result)):
        panels.append(Panel("What attends to what", render(LINK, page=EXPLORER), wide=True))
    if task.split_note:
        panels.append(Panel("Data splits", task.split_note, wide=True))
    details = {"Summary": summary, "Configuration": to_dict(experiment)}
    write_report(run / "report.html", f"{name}: {metric} {show(value)}", figures, panels, details)
    return run / "report.html"


def write_explorer(path: Path, name: str, task: ExperimentTask, result: Fit) -> bool:
    """The attention explorer of a few test samples, of as many as are made quickly; whether there are any."""
    samples, numbers = [], 0
    for sample in task.looks(result):
        numbers += sum(look.heads * len(look.layers) * look.tokens**2 for look in sample.looks)
        if numbers <= QUICK:
            samples.append(sample)
    if samples:
        write_page(path, f"Attention of {name}", samples)
    return bool(samples)


def write_failure_report(name: str, run: Path, task: ExperimentTask, experiment: Experiment, error: UserError) -> None:
    """report.html of a run that an error ended, if it logged anything."""
    rows = read_metrics(run)
    if rows:
        panels = [Panel("Why the run stopped", str(error), wide=True)]
        features = features_panel(rows)
        panels += [training_health(rows), *([] if features is None else [features])]
        panels.append(training_curves(rows, task.objective.primary))
        figures = {"steps": f"{rows[-1]['step']:,} of {experiment.train.steps:,}"}
        details = {"Configuration": to_dict(experiment), "Environment": environment()}
        write_report(run / "report.html", f"{name}: stopped", figures, panels, details)


def _memory(trained: int, parameters: int) -> dict[str, str]:
    """The memory that training takes besides the weights: gradients and AdamW's two averages, in fp32."""
    part, whole = (3 * 4 * count / 2**20 for count in (trained, parameters))
    return {
        "trained parameters": f"{trained:,} ({trained / parameters:.1%})",
        "gradients and optimiser state": f"{part:,.1f} MiB (all parameters: {whole:,.1f})",
    }


def _speed(rows: list[dict[str, Any]]) -> dict[str, str]:
    """Medians over the run."""
    forms = {
        "tokens_per_second": ("tokens per second", "{:,.0f}"),
        "mfu": ("model FLOPs utilisation", "{:.0%}"),
        "data_wait": ("waiting for data", "{:.1%}"),
    }
    logged = {name: [row[name] for row in rows if name in row] for name in forms}
    return {label: form.format(median(logged[name])) for name, (label, form) in forms.items() if logged[name]}
