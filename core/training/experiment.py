"""One experiment, from its task to what it leaves: the trained model with its card, the summary, the report."""

import html
import json
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from torch import nn
from torch.utils.data import Dataset

from .. import adapters
from ..config import to_dict
from ..errors import UserError
from ..objectives import Batch, Classification, Objective
from ..tuning import settle, tune
from .card import write_card
from .config import Experiment
from .loop import Fit, fit
from .probe import Features, probe
from .processes import decided_by_main, is_main
from .report import Panel, curves, health, write_report
from .sampling import seed_everything
from .tracking import environment, new_run, old_run, read_metrics

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
    baseline: Callable[[], tuple[str, float]] | None = None
    """The name of a simpler method and its value of the objective's primary metric."""
    panels: Callable[[Fit], list[Panel]] = lambda fit: []
    """Pictures for the report."""
    kept: Callable[[nn.Module], nn.Module] = lambda model: model
    """What of the trained model is saved."""
    finish: Callable[[Path], None] = lambda run: None
    """Leaves something of its own in the run's directory."""


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


def train_experiment(modality: Modality, name: str, experiment: Experiment) -> None:
    choose = old_run if experiment.resume else new_run
    run = decided_by_main(experiment.train, lambda: choose(experiment.out, name))
    seed_everything(experiment.train.seed)
    task = modality.task(experiment)
    if experiment.tune != "full":
        if experiment.init is None:
            raise UserError(f"--tune {experiment.tune} needs something to start from: name it with --init.")
        settings = {"lora": experiment.lora, "adapter": experiment.adapter, "prompt": experiment.prompt}
        tune(task.model, experiment.tune, **settings)
    # --init decides on the model's shape, the data on its head.
    actual = replace(experiment, model=task.kept(task.model).config, out=run, resume=False)
    before = (run / "config.json").read_text() if experiment.resume else None
    if is_main():
        settings = {"modality": modality.name, "experiment": name}
        _begin(run, settings | to_dict(actual))
    started = time.perf_counter()
    try:
        found = fit(
            task.model,
            task.objective,
            task.train,
            task.test,
            task.collate,
            experiment.train,
            run,
            mix=task.mix,
            in_memory=task.in_memory,
            resume=experiment.resume,
        )
    except UserError as error:
        if before is not None and is_main():  # a resumed run that is refused stays as it was
            (run / "config.json").write_text(before)
        _report_failure(name, run, task, actual, error)
        raise
    if not is_main():
        return
    if not found.finished:
        print(
            f"Stopped after step {found.step} of {experiment.train.steps}; go on with: "
            f"python -m {modality.name}.train {name} --out {run} --resume"
        )
        sys.exit(130)
    trained = sum(p.numel() for p in task.model.parameters() if p.requires_grad)
    if adapters.names(found.model):
        adapters.save(found.model, run / "adapter")
    kept = task.kept(settle(found.model))
    kept.save_pretrained(run / "model")
    task.finish(run)
    worth = _worth_of_start(modality, experiment, task, found.device)
    seconds = time.perf_counter() - started
    summary = _summarise(name, run, task, found, actual, trained, worth, seconds)
    write_card(run / "model", modality.name, type(kept).__name__, actual, summary)


def _worth_of_start(modality: Modality, experiment: Experiment, task: Task, device: str) -> float | None:
    """Accuracy of a linear probe of what a run started from; a probe that fails costs the trained run nothing."""
    if experiment.init is None or experiment.tune == "head" or not isinstance(task.objective, Classification):
        return None
    try:
        start = task_to_probe(modality, experiment)
        return probe(start.model, modality.features, start.train, start.test, start.collate, FEW, device).linear
    except (UserError, ValueError) as error:  # ValueError: sklearn's, of a single class
        warnings.warn(f"What the run started from could not be probed: {error}", stacklevel=2)
        return None


def task_to_probe(modality: Modality, experiment: Experiment) -> Task:
    """An experiment's model as it starts, and its data without augmentation: features are of samples as they are."""
    if hasattr(experiment.data, "augment"):
        experiment = replace(experiment, data=replace(experiment.data, augment=type(experiment.data.augment)()))
    seed_everything(experiment.train.seed)
    return modality.task(experiment)


def _report_failure(name: str, run: Path, task: Task, experiment: Experiment, error: UserError) -> None:
    """What is known of a run that ended early, if it got anywhere."""
    rows = read_metrics(run)
    if rows and is_main():
        panels = [Panel("Why it stopped", f"<p>{html.escape(str(error))}</p>", wide=True)]
        panels += [health(rows), curves(rows, task.objective.primary)]
        figures = {"steps": f"{rows[-1]['step']:,} of {experiment.train.steps:,}"}
        details = {"Configuration": to_dict(experiment), "Environment": environment()}
        write_report(run / "report.html", f"{name}: stopped", figures, panels, details)


def _summarise(
    name: str,
    run: Path,
    task: Task,
    found: Fit,
    experiment: Experiment,
    trained: int,
    head_alone: float | None,
    seconds: float,
) -> dict[str, Any]:
    """Write summary and report. head_alone: accuracy of a linear probe before training."""
    metric = task.objective.primary
    show = "{:.2%}".format if task.objective.percent else "{:.4g}".format
    value = show(found.metrics[metric])
    baseline = task.baseline() if task.baseline else None
    parameters = sum(p.numel() for p in found.model.parameters())
    summary = {
        "experiment": name,
        "metric": metric,
        "percent": task.objective.percent,
        "metrics": found.metrics,
        "baseline": {baseline[0]: baseline[1]} if baseline else None,
        "steps": found.step,
        "train_seconds": round(found.seconds, 2),
        "total_seconds": round(seconds, 2),
        "parameters": parameters,
        "trained_parameters": trained,
        **({} if head_alone is None else {"linear_probe": head_alone}),
        "train_samples": len(task.train),
        "test_samples": len(task.test),
        "precision": found.precision,
        "device": found.device,
        **environment(),
    }
    (run / "summary.json").write_text(json.dumps(summary, indent=2))
    rows = read_metrics(run)
    figures = {f"test {metric}": value}
    if baseline:
        figures[baseline[0]] = show(baseline[1])
    figures |= {
        "training time": f"{found.seconds:.0f} s",
        "steps": f"{found.step:,}",
        **_speed(rows),
        "parameters": f"{parameters:,}",
        **(_cost(trained, parameters) if experiment.tune != "full" else {}),
        **({} if head_alone is None else _gain(found.metrics[metric] - head_alone)),
        "training samples": f"{len(task.train):,}",
        "test samples": f"{len(task.test):,}",
        "precision": f"{found.precision}, {found.device}",
    }
    panels = [curves(rows, metric, baseline), *task.panels(found), health(rows)]
    details = {"Summary": summary, "Configuration": to_dict(experiment)}
    write_report(run / "report.html", f"{name}: {metric} {value}", figures, panels, details)
    beside = f" ({baseline[0]}: {show(baseline[1])})" if baseline else ""
    print(f"{name}: test {metric} {value}{beside} after {found.seconds:.0f} s; report: {run / 'report.html'}")
    return summary


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


def _begin(run: Path, settings: dict[str, Any]) -> None:
    try:
        run.mkdir(parents=True, exist_ok=True)
        (run / "config.json").write_text(json.dumps(settings, indent=2))
    except OSError as error:
        raise UserError(f"The run directory {run} cannot be written: {error.strerror}.") from None
