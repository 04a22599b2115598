"""Early stopping: when it ends a run, which checkpoint is tested and returned, and that a resumed run does the same."""

import os
import signal

import pytest
import torch
from points import Points, build, collate

from core import Classification, UserError
from core.training import Task, TrainConfig, fit
from core.training.checkpoint import checkpoints, load_checkpoint, read_record
from core.training.patience import Patience
from core.training.throughput import TIMED
from core.training.tracking import read_metrics


def make_task(seed=0, dropout=0.2, misleading=True):
    """misleading: the labels of the validation set are wrong, so that the model gets worse at them as it learns."""
    validation = Points(14, jitter=0.0)
    if misleading:
        validation.targets = (validation.targets + 1) % 3
    model = build(dropout=dropout, seed=seed)
    return Task(model, Classification(), Points(60), Points(9), collate, validation=validation, in_memory=True)


def train(run, task=None, resume=False, **changes):
    run.mkdir(exist_ok=True)
    settings = {"steps": 60, "batch_size": 12, "warmup": 1, "lr": 0.05, "log_every": 1, "eval_every": 2, "keep": 1}
    settings |= {"save_every": 50, "precision": "fp32", "device": "cpu", "patience": 3}
    return fit(task or make_task(), TrainConfig(**{**settings, **changes}), run, resume=resume)


def scores(run):
    return {row["step"]: row["validation_accuracy"] for row in read_metrics(run) if "validation_accuracy" in row}


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def rows(run):
    return [{k: v for k, v in row.items() if k not in TIMED} for row in read_metrics(run)]


def test_scores_that_are_equal_or_not_finite_are_not_better():
    patience = Patience(3)
    assert [patience.judge(score) for score in (None, 0.5, 0.5, None, 0.6, 0.1, 0.2)] == [
        False, True, False, False, True, False, False
    ]  # fmt: skip
    assert not patience.exhausted
    assert not patience.judge(0.6) and patience.exhausted


@pytest.mark.parametrize("ema", [0.0, 0.5])
def test_a_run_ends_when_nothing_gets_better_and_returns_its_best_model(tmp_path, ema, capsys):
    found = train(tmp_path / "run", ema=ema)
    seen = scores(tmp_path / "run")
    best = max(seen, key=seen.__getitem__)
    assert found.finished and found.best_step == best and found.step == best + 2 * 3 == max(seen) < 60
    assert found.validation["accuracy"] == seen[best]
    kept = checkpoints(tmp_path / "run" / "checkpoints")
    assert [read_record(path)["step"] for path in kept] == [best, found.step]
    _, saved, state = load_checkpoint(kept[0])
    if ema:
        saved = {name.removeprefix("module."): value for name, value in state["average"].items()}
    assert all(torch.equal(value, saved[name]) for name, value in found.model.state_dict().items())
    last = read_metrics(tmp_path / "run")[-1]
    assert (last["step"], last["best_step"], last["test_accuracy"]) == (found.step, best, found.metrics["accuracy"])
    said = capsys.readouterr().out
    assert f"step {found.step}: training ends, no better validation accuracy in 3 evaluations" in said
    assert f"step {best}: test accuracy" in said.replace("test loss", "test accuracy")


def test_the_best_checkpoint_is_taken_where_training_is_not_cut_short(tmp_path):
    found = train(tmp_path / "run", steps=12, patience=50)
    assert found.step == 12 and found.best_step == 2
    short = train(tmp_path / "short", steps=2, patience=None, warmup=1)
    assert short.best_step is None and len(scores(tmp_path / "short")) == 1


@pytest.mark.parametrize("moment", [3, 6])
def test_a_run_that_is_stopped_and_resumed_ends_the_same(tmp_path, moment):
    whole = train(tmp_path / "whole")
    task, steps = make_task(), []

    def stop(module, inputs, output):
        steps.append(module.training)
        if sum(steps) == moment and module.training:
            os.kill(os.getpid(), signal.SIGTERM)

    task.model.register_forward_hook(stop)
    assert not train(tmp_path / "parts", task).finished
    resumed = train(tmp_path / "parts", make_task(seed=9), resume=True)
    assert (resumed.step, resumed.best_step, resumed.metrics) == (whole.step, whole.best_step, whole.metrics)
    assert torch.equal(weights(resumed.model), weights(whole.model))
    assert rows(tmp_path / "parts") == rows(tmp_path / "whole")


def test_a_signal_while_the_best_model_is_tested_loses_nothing(tmp_path):
    whole = train(tmp_path / "whole")
    task = make_task()

    class Interrupting(Points):
        def __getitem__(self, index):
            os.kill(os.getpid(), signal.SIGTERM)
            return super().__getitem__(index)

    task.test.__class__ = Interrupting
    stopped = train(tmp_path / "parts", task)
    assert not stopped.finished and stopped.metrics == {} and stopped.step == whole.step
    for _ in range(2):  # the second time it is resumed at its end
        resumed = train(tmp_path / "parts", make_task(seed=9), resume=True)
        assert resumed.finished and resumed.metrics == whole.metrics and resumed.best_step == whole.best_step
        assert rows(tmp_path / "parts") == rows(tmp_path / "whole")


def test_more_patience_goes_on_from_the_last_step_and_not_from_the_best(tmp_path):
    train(tmp_path / "run", make_task(dropout=0.0))
    on = train(tmp_path / "run", make_task(seed=9, dropout=0.0), resume=True, patience=5)
    whole = train(tmp_path / "whole", make_task(dropout=0.0), patience=5)
    assert on.step == whole.step and torch.equal(weights(on.model), weights(whole.model))


def test_without_a_validation_set_it_is_refused(tmp_path):
    task = make_task()
    task.validation = None
    with pytest.raises(UserError, match=r"--train\.patience needs a validation set"):
        train(tmp_path / "run", task)
