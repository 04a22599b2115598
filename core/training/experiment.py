"""One experiment, from its task to what it leaves: the trained model with its card, the summary, the report."""

import html
import math
import shlex
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

from torch import nn
from torch.utils.data import Dataset

from .. import adapters
from ..config import to_dict
from ..errors import UserError
from ..files import reason, replacing_folder, write_json
from ..memory import memory_explained
from ..objectives import Batch, Classification, Objective
from ..tuning import settle, tune
from .card import write_card
from .config import Experiment
from .held import Samples, check_held, save_held
from .interruptions import end_on_signal
from .loop import Fit, fit
from .probe import Features, probe
from .processes import decided_by_main, is_main
from .report import Panel, curves, health, write_report
from .run import Run, open_run, saved_experiment
from .sampling import seed_everything
from .tracking import environment, read_metrics

T = TypeVar("T")
FEW = 5_000  # samples for a quick look


@dataclass
class Task:
    """What an experiment trains: all that a modality adds to the loop."""

    model: nn.Module
    objective: Objective
    train: Dataset
    test: Dataset
    collate: Callable[[list], Batch]
    mix: Callable[[Batch], Batch] | None = None
    """Changes a whole training batch on the device (mixup)."""
    in_memory: bool = False
    """Samples cost nothing to fetch."""
    baseline: Callable[[], tuple[str, float] | None] = lambda: None
    """The name of a simpler method and its value of the objective's primary metric."""
    panels: Callable[[Fit], list[Panel]] = lambda fit: []
    """Pictures for the report."""
    kept: Callable[[nn.Module], nn.Module] = lambda model: model
    """What of the trained model is saved."""
    samples: Samples = field(default_factory=dict)
    """What the data consist of; a resumed run must find the same."""
    first: Callable[[Path], None] = lambda run: None
    """At a run's first start, leaves in its directory what the data decided on (a vocabulary)."""
    beside: Callable[[Path], None] = lambda folder: None
    """Leaves in the trained model's directory what belongs to its weights (a tokenizer)."""
    finish: Callable[[Path], None] = lambda run: None
    """Leaves something of its own in the run's directory when it has ended."""


@dataclass(frozen=True)
class Modality:
    """A modality's part of the command line."""

    name: str
    """The package."""
    experiments: Sequence[Callable[[], Experiment]]
    """Named experiments; the docstring of each is its help."""
    task: Callable[[Experiment], Task]
    """Reads the data and builds the model of an experiment; called with the seed set."""
    features: Features = lambda model, *inputs: model.features(*inputs)
    """One vector per sample that a head of one's own could be put on."""


def spelt(function: Callable[[], Experiment]) -> str:
    """An experiment's name on the command line."""
    return function.__name__.replace("_", "-")


def train_experiment(modality: Modality, name: str, experiment: Experiment) -> None:
    with ExitStack() as stack:
        stack.enter_context(end_on_signal())
        run = decided_by_main(experiment.train, lambda: stack.enter_context(open_run(experiment, name)))
        _train(modality, name, replace(experiment, out=run.path), run)


def _train(modality: Modality, name: str, experiment: Experiment, run: Run) -> None:
    seed_everything(experiment.train.seed)
    with memory_explained("the data and the model", "choose a smaller model"):
        task = modality.task(experiment)
    if experiment.tune != "full":
        if experiment.init is None:
            raise UserError(f"--tune {experiment.tune} needs something to start from: name it with --init.")
        settings = {"lora": experiment.lora, "adapter": experiment.adapter, "prompt": experiment.prompt}
        tune(task.model, experiment.tune, **settings)
    experiment = _without_smoothing(modality, name, experiment, task.objective)
    # --init decides on the model's shape, the data on its head.
    actual = replace(experiment, model=task.kept(task.model).config, resume=False)
    if run.resumed:
        check_held(run.path, saved_experiment(run.path, type(experiment), modality.name, name), actual, task.samples)

    def begin() -> None:
        if not run.begun and not run.resumed:
            save_held(run.path, task.samples)
            task.first(run.path)
        run.begin(modality.name, name, to_dict(actual))

    started = time.perf_counter()
    try:
        found = fit(
            task.model,
            task.objective,
            task.train,
            task.test,
            task.collate,
            experiment.train,
            run.path,
            mix=task.mix,
            in_memory=task.in_memory,
            resume=run.resumed,
            run_id=run.id,
            begin=begin,
        )
    except UserError as error:
        if is_main() and run.begun:
            _spared("The report", partial(_report_failure, name, run.path, task, actual, error))
        raise
    if not is_main():
        return
    again = f"python -m {modality.name}.train {name} --out {shlex.quote(str(run.path))} --resume"
    if not found.finished:
        print(f"Stopped after step {found.step} of {experiment.train.steps}; go on with: {again}")
        sys.exit(130)
    try:
        _finish(modality, name, actual, run.path, task, found, started)
    except OSError as error:
        raise UserError(
            f"{error.filename or run.path} cannot be written: {reason(error)}; make room, and go on with: {again}"
        ) from None


def _without_smoothing(modality: Modality, name: str, experiment: Experiment, objective: Objective) -> Experiment:
    """Labels are smoothed where there are classes; elsewhere that is an experiment's default, or a mistake."""
    if hasattr(objective, "label_smoothing") or not experiment.train.label_smoothing:
        return experiment
    default = next(function() for function in modality.experiments if spelt(function) == name)
    if experiment.train.label_smoothing != default.train.label_smoothing:
        raise UserError("--train.label-smoothing has no effect where one class is not to be predicted: leave it out.")
    return replace(experiment, train=replace(experiment.train, label_smoothing=0.0))


def _finish(
    modality: Modality, name: str, experiment: Experiment, run: Path, task: Task, found: Fit, started: float
) -> None:
    """Leave the trained model, its card, the summary and the report, the most important first."""
    metric = task.objective.primary
    if bad := [name for name, value in found.model.state_dict().items() if not value.isfinite().all()]:
        raise UserError(f"The trained weights are no longer finite ({bad[0]}): train with a lower --train.lr.")
    if not math.isfinite(found.metrics[metric]):
        raise UserError(f"The test {metric} is {found.metrics[metric]}: look at the test data.")
    trained = sum(p.numel() for p in task.model.parameters() if p.requires_grad)
    if adapters.names(found.model):
        with replacing_folder(run / "adapter") as folder:
            adapters.save(found.model, folder)
    kept = task.kept(settle(found.model))
    with replacing_folder(run / "model") as folder:
        kept.save_pretrained(folder)
        task.beside(folder)
    baseline = _spared("The baseline", task.baseline)
    start = _spared(
        "The probe of what the run started from", lambda: _worth_of_start(modality, experiment, task, found)
    )
    summary = _summarise(name, task, found, trained, baseline, start, time.perf_counter() - started)
    write_json(run / "summary.json", summary)
    _spared(
        "The model card", lambda: write_card(run / "model", modality.name, type(kept).__name__, experiment, summary)
    )
    _spared("The samples", lambda: task.finish(run))
    page = _spared("The report", lambda: _report(name, run, task, found, experiment, summary)) or "no report"
    show = shown(task.objective)
    beside = f" ({baseline[0]}: {show(baseline[1])})" if baseline else ""
    print(f"{name}: test {metric} {show(found.metrics[metric])}{beside} after {found.seconds:.0f} s; report: {page}")


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


def _worth_of_start(modality: Modality, experiment: Experiment, task: Task, found: Fit) -> float | None:
    """Accuracy of a linear probe of what a run started from, where that was asked for."""
    if not experiment.probe_start or not isinstance(task.objective, Classification):
        return None
    start = task_to_probe(modality, experiment)
    return probe(start.model, modality.features, start.train, start.test, start.collate, FEW, found.device).linear


def task_to_probe(modality: Modality, experiment: Experiment) -> Task:
    """An experiment's model as it starts, and its data without augmentation: features are of samples as they are."""
    if hasattr(experiment.data, "augment"):
        experiment = replace(experiment, data=replace(experiment.data, augment=type(experiment.data.augment)()))
    seed_everything(experiment.train.seed)
    return modality.task(experiment)


def _report_failure(name: str, run: Path, task: Task, experiment: Experiment, error: UserError) -> None:
    """What is known of a run that ended early, if it got anywhere."""
    rows = read_metrics(run)
    if rows:
        panels = [Panel("Why it stopped", f"<p>{html.escape(str(error))}</p>", wide=True)]
        panels += [health(rows), curves(rows, task.objective.primary)]
        figures = {"steps": f"{rows[-1]['step']:,} of {experiment.train.steps:,}"}
        details = {"Configuration": to_dict(experiment), "Environment": environment()}
        write_report(run / "report.html", f"{name}: stopped", figures, panels, details)


def _summarise(
    name: str,
    task: Task,
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


def _report(name: str, run: Path, task: Task, found: Fit, experiment: Experiment, summary: Mapping[str, Any]) -> Path:
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
    panels = [curves(rows, metric, baseline), *(_spared("The figures", lambda: task.panels(found)) or []), health(rows)]
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
