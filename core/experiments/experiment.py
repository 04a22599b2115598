"""One experiment: train its task, then save the model with its card, the summary and the report."""

import math
import shlex
import sys
import time
from collections.abc import Collection
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path

from .. import adapters
from ..config import flatten, to_dict
from ..errors import UserError
from ..files import reason, replacing_folder, write_json
from ..memory import memory_explained
from ..models.tuning import merge_adapters, tune
from ..objectives.classification import Classification
from ..objectives.distillation import Distillation
from ..objectives.objective import Objective
from ..objectives.token_distillation import TokenDistillation
from ..training.interruptions import end_on_signal
from ..training.loop import Fit, fit
from ..training.processes import decided_by_main, is_main
from ..training.sampling import seed_everything
from ..training.tracking import read_metrics
from .card import write_card
from .config import Experiment
from .fixed import CHANGEABLE_IN_MODEL, check_unchanged, save_samples
from .probe import probe, some_of
from .run import Run, open_run, saved_experiment
from .sizing import settle
from .summary import metric_format, shown_interval, summarise, try_to_make, write_failure_report, write_run_report
from .task import ExperimentTask, Modality, default_of

PROBE_SAMPLES = 5_000  # training samples for the probe of what a run starts from


def train_experiment(modality: Modality, name: str, experiment: Experiment, given: Collection[str] = ()) -> None:
    """given: the names of the fields that options set; the others may follow the data."""
    with ExitStack() as stack:
        stack.enter_context(end_on_signal())
        run = decided_by_main(experiment.train, lambda: stack.enter_context(open_run(experiment, name)))
        experiment, said = settle(replace(experiment, out=run.path), default_of(modality, name), given, modality.sizing)
        if said and is_main() and not experiment.quiet:
            print(said)
        _train(modality, name, experiment, run, given)


def _train(modality: Modality, name: str, experiment: Experiment, run: Run, given: Collection[str]) -> None:
    task = _make_task(modality, experiment)
    experiment = _without_smoothing(modality, name, experiment, task.objective)
    _check_class_options(experiment, task.objective)
    # --init decides on the shape of the model, the data on its head.
    actual = replace(experiment, model=task.saved_part(task.model).config, resume=False)
    _check_given(experiment, actual, given)
    if run.resumed:
        saved = saved_experiment(run.path, type(experiment), modality.name, name)
        check_unchanged(run.path, saved, actual, task.samples)

    def begin() -> None:
        if not run.begun and not run.resumed:
            save_samples(run.path, task.samples)
            task.on_start(run.path)
        run.begin(modality.name, name, task.objective, to_dict(actual))

    started = time.perf_counter()
    try:
        options = {"resume": run.resumed, "run_id": run.id, "begin": begin, "quiet": experiment.quiet}
        result = fit(task, experiment.train, run.path, **options)
    except UserError as error:
        if is_main() and run.begun:
            try_to_make("The report", partial(write_failure_report, name, run.path, task, actual, error))
        raise
    if not is_main():
        return
    resume_command = f"python -m {modality.name}.train {name} --out {shlex.quote(str(run.path))} --resume"
    if not result.finished:
        print(f"Stopped after step {result.step} of {experiment.train.steps}; go on with: {resume_command}")
        sys.exit(130)
    try:
        _save_results(modality, name, actual, run.path, task, result, started)
    except OSError as error:
        raise UserError(
            f"{error.filename or run.path} cannot be written: {reason(error)}; make room, and go on with: "
            f"{resume_command}"
        ) from None


def _make_task(modality: Modality, experiment: Experiment) -> ExperimentTask:
    """The task, with the parts of the model frozen that are not to be trained."""
    seed_everything(experiment.train.seed)
    with memory_explained("the data and the model", "choose a smaller model"):
        task = modality.task(experiment)
    if experiment.tune != "full":
        if experiment.init is None:
            raise UserError(f"--tune {experiment.tune} needs something to start from: name it with --init.")
        settings = {"lora": experiment.lora, "adapter": experiment.adapter, "prompt": experiment.prompt}
        tune(task.tuned_part(task.model), experiment.tune, **settings, head=task.head)
    task.on_tuned(task.model)
    return task


def _check_given(experiment: Experiment, actual: Experiment, given: Collection[str]) -> None:
    """Refuse options of the model that it did not follow. given: the fields that options set; actual: what it is."""
    wanted, found = flatten(to_dict(experiment)), flatten(to_dict(actual))
    for name in sorted(name for name in given if name.startswith("model.") and name in wanted):
        # What is of training alone, as masks of spectrograms, may have no place in all ways to train.
        if wanted[name] != found.get(name) and name.rpartition(".")[2] not in CHANGEABLE_IN_MODEL:
            cause = "the data" if experiment.init is None else f"--init {experiment.init} and the data"
            raise UserError(
                f"--{name.replace('_', '-')} {wanted[name]} has no effect, because {cause} decide on it: the model has "
                f"{found.get(name)}. Leave it out."
            )


def _without_smoothing(modality: Modality, name: str, experiment: Experiment, objective: Objective) -> Experiment:
    """Without classes there is no label smoothing: it is dropped if it is the default, and refused otherwise."""
    if hasattr(objective, "label_smoothing") or not experiment.train.label_smoothing:
        return experiment
    if experiment.train.label_smoothing != default_of(modality, name).train.label_smoothing:
        raise UserError("--train.label-smoothing has no effect where one class is not to be predicted: leave it out.")
    return replace(experiment, train=replace(experiment.train, label_smoothing=0.0))


def _check_class_options(experiment: Experiment, objective: Objective) -> None:
    """Refuse options that are about one class per sample where no such class is predicted."""
    if experiment.distill.teacher is not None and not isinstance(objective, Distillation | TokenDistillation):
        raise UserError("--distill.teacher has no effect where one class is not to be predicted: leave it out.")
    train = experiment.train
    given = {"loss": train.class_loss != "ce", "balance": train.class_balance != "none"}
    if not isinstance(objective, Classification) and any(given.values()):
        name = next(name for name, used in given.items() if used)
        raise UserError(f"--train.class-{name} has no effect where one class is not to be predicted: leave it out.")


def _save_results(
    modality: Modality,
    name: str,
    experiment: Experiment,
    run: Path,
    task: ExperimentTask,
    result: Fit,
    started: float,
) -> None:
    """Save the trained model, the summary, its card and the report, the most important first."""
    metric = task.objective.primary
    if bad := [name for name, value in result.model.state_dict().items() if not value.isfinite().all()]:
        raise UserError(f"The trained weights are no longer finite ({bad[0]}): train with a lower --train.lr.")
    if not math.isfinite(result.metrics[metric]):
        raise UserError(f"The test {metric} is {result.metrics[metric]}: look at the test data.")
    trained = sum(p.numel() for p in task.model.parameters() if p.requires_grad)
    if adapters.names(result.model):
        with replacing_folder(run / "adapter") as folder:
            adapters.save(task.saved_part(result.model), folder)
    model = task.saved_part(merge_adapters(result.model))
    with replacing_folder(run / "model") as folder:
        model.save_pretrained(folder)
        task.on_save_model(folder)
    baseline = try_to_make("The baseline", task.baseline)
    probed = try_to_make("The probe of the starting model", partial(_probe_start, modality, experiment, task, result))
    seconds = time.perf_counter() - started
    summary = summarise(name, task, result, trained, baseline, probed, read_metrics(run), seconds)
    write_json(run / "summary.json", summary)
    kind = type(model).__name__
    try_to_make("The model card", lambda: write_card(run / "model", modality.name, kind, to_dict(experiment), summary))
    try_to_make("The samples", lambda: task.on_end(run))
    page = try_to_make("The report", lambda: write_run_report(name, run, task, result, experiment, summary))
    show = metric_format(task.objective)
    notes = [f"95 % interval {shown_interval(summary['interval'])}"] if "interval" in summary else []
    notes += [f"{baseline[0]}: {show(baseline[1])}"] if baseline else []
    beside = f" ({'; '.join(notes)})" if notes else ""
    print(
        f"{name}: test {metric} {show(result.metrics[metric])}{beside} after {result.seconds:.0f} s; "
        f"report: {page or 'no report'}"
    )


def _probe_start(modality: Modality, experiment: Experiment, task: ExperimentTask, result: Fit) -> float | None:
    """The accuracy of a linear probe of the model that the run started from, if --probe-start asks for it."""
    if not experiment.probe_start or not isinstance(task.objective, Classification):
        return None
    start = task_to_probe(modality, experiment)
    train, model = some_of(start.train, PROBE_SAMPLES), start.model.to(result.device)
    return probe(model, modality.features, train, start.test, start.collate).linear


def task_to_probe(modality: Modality, experiment: Experiment) -> ExperimentTask:
    """The task with the model as it starts, and without augmentation of the data."""
    if hasattr(experiment.data, "augment"):
        experiment = replace(experiment, data=replace(experiment.data, augment=type(experiment.data.augment)()))
    seed_everything(experiment.train.seed)
    return modality.task(experiment)
