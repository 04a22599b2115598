"""One experiment, from its task to what it leaves: the trained model with its card, the summary, the report."""

import math
import shlex
import sys
import time
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path

from .. import adapters
from ..config import to_dict
from ..errors import UserError
from ..files import reason, replacing_folder, write_json
from ..memory import memory_explained
from ..models.tuning import merge_adapters, tune
from ..objectives.classification import Classification
from ..objectives.objective import Objective
from ..training.interruptions import end_on_signal
from ..training.loop import Fit, fit
from ..training.processes import decided_by_main, is_main
from ..training.sampling import seed_everything
from .card import write_card
from .config import Experiment
from .fixed import check_held, save_held
from .probe import probe
from .run import Run, open_run, saved_experiment
from .summary import _report, _report_failure, _spared, _summarise, shown
from .task import ExperimentTask, Modality, spelt

FEW = 5_000  # samples for a quick look


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
    actual = replace(experiment, model=task.saved_part(task.model).config, resume=False)
    if run.resumed:
        check_held(run.path, saved_experiment(run.path, type(experiment), modality.name, name), actual, task.samples)

    def begin() -> None:
        if not run.begun and not run.resumed:
            save_held(run.path, task.samples)
            task.on_start(run.path)
        run.begin(modality.name, name, to_dict(actual))

    started = time.perf_counter()
    try:
        found = fit(
            task,
            experiment.train,
            run.path,
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
    modality: Modality, name: str, experiment: Experiment, run: Path, task: ExperimentTask, found: Fit, started: float
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
    kept = task.saved_part(merge_adapters(found.model))
    with replacing_folder(run / "model") as folder:
        kept.save_pretrained(folder)
        task.on_save_model(folder)
    baseline = _spared("The baseline", task.baseline)
    start = _spared(
        "The probe of what the run started from", lambda: _worth_of_start(modality, experiment, task, found)
    )
    summary = _summarise(name, task, found, trained, baseline, start, time.perf_counter() - started)
    write_json(run / "summary.json", summary)
    _spared(
        "The model card", lambda: write_card(run / "model", modality.name, type(kept).__name__, experiment, summary)
    )
    _spared("The samples", lambda: task.on_end(run))
    page = _spared("The report", lambda: _report(name, run, task, found, experiment, summary)) or "no report"
    show = shown(task.objective)
    beside = f" ({baseline[0]}: {show(baseline[1])})" if baseline else ""
    print(f"{name}: test {metric} {show(found.metrics[metric])}{beside} after {found.seconds:.0f} s; report: {page}")


def _worth_of_start(modality: Modality, experiment: Experiment, task: ExperimentTask, found: Fit) -> float | None:
    """Accuracy of a linear probe of what a run started from, where that was asked for."""
    if not experiment.probe_start or not isinstance(task.objective, Classification):
        return None
    start = task_to_probe(modality, experiment)
    return probe(start.model, modality.features, start.train, start.test, start.collate, FEW, found.device).linear


def task_to_probe(modality: Modality, experiment: Experiment) -> ExperimentTask:
    """An experiment's model as it starts, and its data without augmentation: features are of samples as they are."""
    if hasattr(experiment.data, "augment"):
        experiment = replace(experiment, data=replace(experiment.data, augment=type(experiment.data.augment)()))
    seed_everything(experiment.train.seed)
    return modality.task(experiment)
