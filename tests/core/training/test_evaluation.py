"""Training looks at the validation set alone; the test set is evaluated once, after the last step."""

import multiprocessing
import os
import signal

import pytest
import torch
from points import Points, accelerator, build, collate
from torch import nn

from core import Classification, UserError
from core.training import Task, TrainConfig, fit
from core.training.checkpoint import checkpoints, read_record
from core.training.evaluation import evaluate_model
from core.training.tracking import read_metrics


class Recorded(Points):
    """Notes when each sample is read."""

    def __init__(self, split, log, size=9, **kwargs):
        super().__init__(size, jitter=0.0, **kwargs)
        self.split, self.log = split, log

    def __getitem__(self, index):
        self.log.append((self.split, index))
        return super().__getitem__(index)


def make_task(log=None, validation=True, misleading=False):
    """A task whose data note in `log` when they are read, between the training steps that the model notes there.

    misleading: the labels of the validation set are wrong, so that the model gets worse at them as it learns.
    """
    log = [] if log is None else log
    model = build()
    model.register_forward_hook(lambda module, inputs, output: log.append("step") if module.training else None)
    splits = {split: Recorded(split, log) for split in ("validation", "test")}
    if misleading:
        splits["validation"].targets = (splits["validation"].targets + 1) % 3
    return Task(
        model,
        Classification(),
        Points(60),
        splits["test"],
        collate,
        validation=splits["validation"] if validation else None,
        in_memory=True,
    )


def train(run, task, resume=False, **changes):
    run.mkdir(exist_ok=True)
    settings = {"steps": 8, "batch_size": 12, "warmup": 1, "lr": 1e-2, "log_every": 1, "eval_every": 2, "keep": 1}
    config = TrainConfig(**{**settings, "save_every": 1, "precision": "fp32", "device": "cpu", **changes})
    return fit(task, config, run, resume=resume)


def reads_of(log, split):
    """The steps after which the split was read, and how many samples each time."""
    reads, step = {}, 0
    for event in log:
        if event == "step":
            step += 1
        elif event[0] == split:
            reads[step] = reads.get(step, 0) + 1
    return reads


def test_the_test_set_is_read_once_after_the_last_step(tmp_path):
    log = []
    found = train(tmp_path / "run", make_task(log))
    assert reads_of(log, "validation") == {2: 9, 4: 9, 6: 9, 8: 9}
    assert reads_of(log, "test") == {8: 9}
    rows = read_metrics(tmp_path / "run")
    assert [row["step"] for row in rows if "validation_accuracy" in row] == [2, 4, 6, 8]
    assert [row["step"] for row in rows if "test_accuracy" in row] == [8]
    assert rows[-1]["test_loss"] == found.metrics["loss"] and rows[-1]["validation_loss"] == found.validation["loss"]
    assert len(found.results["targets"]) == 9


def test_without_a_validation_set_nothing_is_evaluated_before_the_end(tmp_path):
    log = []
    found = train(tmp_path / "run", make_task(log, validation=False))
    assert reads_of(log, "test") == {8: 9} and found.validation == {} and "accuracy" in found.metrics
    assert [read_record(path)["score"] for path in checkpoints(tmp_path / "run" / "checkpoints")] == [None]


def test_the_best_checkpoint_is_chosen_on_the_validation_set(tmp_path):
    """The test set, on which the last checkpoint is the best, has no say in it."""
    task = make_task(misleading=True)
    found = train(tmp_path / "run", task, lr=0.1)
    accuracies = {
        row["step"]: row["validation_accuracy"]
        for row in read_metrics(tmp_path / "run")
        if "validation_accuracy" in row
    }
    best = max(accuracies, key=accuracies.__getitem__)
    assert best < 8 and accuracies[8] < accuracies[best] and found.metrics["accuracy"] > 0.8
    kept = [read_record(path) for path in checkpoints(tmp_path / "run" / "checkpoints")]
    assert [record["step"] for record in kept] == [best, 8]
    assert kept[0]["score"] == accuracies[best]


def test_a_run_resumed_at_its_end_evaluates_the_test_set_once(tmp_path):
    found, log = train(tmp_path / "run", make_task()), []
    again = train(tmp_path / "run", make_task(log), resume=True)
    assert reads_of(log, "test") == {0: 9}
    assert (again.metrics, again.validation) == (found.metrics, found.validation)


@pytest.mark.parametrize("split", ["validation", "test"])
def test_an_interrupted_evaluation_is_made_up_for(tmp_path, split):
    """A signal comes while the last step is evaluated; the run that goes on evaluates and logs that step."""
    whole = train(tmp_path / "whole", make_task())
    task = make_task()
    data = getattr(task, split)
    plain, steps = data.__class__.__getitem__, []
    task.model.register_forward_hook(lambda module, inputs, output: steps.append(module.training))

    class Interrupting(Recorded):
        def __getitem__(self, index):
            if sum(steps) == 8:
                os.kill(os.getpid(), signal.SIGTERM)
            return plain(self, index)

    data.__class__ = Interrupting
    stopped = train(tmp_path / "run", task)
    assert not stopped.finished and stopped.step == 8 and stopped.metrics == {}
    assert read_metrics(tmp_path / "run")[-1]["step"] == 7
    resumed = train(tmp_path / "run", make_task(), resume=True)
    assert resumed.finished and resumed.metrics == whole.metrics and resumed.validation == whole.validation
    assert [row["step"] for row in read_metrics(tmp_path / "run")] == list(range(1, 9))
    assert read_metrics(tmp_path / "run")[-1]["test_loss"] == whole.metrics["loss"]


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_an_empty_split_is_refused(tmp_path, split):
    task = make_task()
    setattr(task, split, Points(0))
    with pytest.raises(UserError, match=f"The {split} data are empty"):
        train(tmp_path / "run", task)


def test_evaluation_covers_every_sample_once():
    class Identity(nn.Module):
        def forward(self, x):
            return x

    torch.manual_seed(0)
    data = Points(17, noise=0.0, jitter=0.0)
    metrics, results = evaluate_model(accelerator(), Identity(), Classification(), data, collate, 5)
    assert torch.equal(results["targets"], data.targets)
    assert metrics["accuracy"] == 1.0


@pytest.mark.parametrize(
    "options, most",
    [
        ({"batch_size": 6}, 12),
        ({"batch_size": 6, "accumulate": 3}, 4),
        ({"batch_size": 1}, 2),
        ({"batch_size": 6, "eval_batch_size": 7}, 7),
        ({"tokens_per_batch": 40}, 8),
        ({"tokens_per_batch": 40, "accumulate": 2}, 4),
    ],
)
def test_evaluation_takes_twice_what_training_takes_at_a_time(tmp_path, options, most):
    """Of samples with different numbers of tokens as many as would fit if all were the longest."""
    taken = []
    task = make_task()
    task.train.token_counts = [1 + number % 10 for number in range(60)]
    task.validation.token_counts = [10, *[1] * 8]
    task.model.register_forward_hook(
        lambda module, inputs, output: taken.append(len(output)) if not module.training else None
    )
    fit(task, TrainConfig(steps=1, warmup=0, device="cpu", precision="fp32", **options), tmp_path / "run")
    assert max(taken) == min(most, 9)


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_loading_processes_change_nothing(workers):
    """Nor is any of them left afterwards, whether evaluation comes to its end or not."""
    model, data = build(), Points(17, jitter=0.0)
    others = multiprocessing.active_children()

    def evaluated(workers, stopped=lambda: False):
        options = {"batch_size": 4, "workers": workers, "stopped": stopped}
        return evaluate_model(accelerator(), model, Classification(), data, collate, **options)

    (metrics, results), (expected, in_process) = evaluated(workers), evaluated(0)
    assert metrics == expected and all(torch.equal(results[name], in_process[name]) for name in in_process)
    assert evaluated(workers, lambda: True) is None
    assert multiprocessing.active_children() == others


def test_a_sample_that_cannot_be_read_by_a_loading_process_is_named():
    class Broken(Points):
        def __getitem__(self, index):
            if index == 13:
                raise UserError("photo 13 is no image: remove it.")
            return super().__getitem__(index)

    with pytest.raises(UserError, match=r"photo 13 is no image: remove it\.$"):
        evaluate_model(accelerator(), build(), Classification(), Broken(17), collate, 4, workers=2)


class ErrorRate(Classification):
    primary = "errors"
    lower_is_better = True

    def metrics(self, results):
        found = super().metrics(results)
        return {**found, "errors": 1 - found["accuracy"]}


def test_where_less_of_the_primary_metric_is_better_the_least_is_the_best(tmp_path):
    """The model gets worse at wrong labels as it learns, so that the best step is an early one."""
    found = {}
    for objective in (Classification(), ErrorRate()):
        task = make_task(misleading=True)
        task.objective = objective
        found[type(objective)] = train(tmp_path / type(objective).__name__, task, patience=2, steps=40)
    assert found[ErrorRate].best_step == found[Classification].best_step < 40
    assert found[ErrorRate].validation["errors"] == 1 - found[Classification].validation["accuracy"]


def test_an_objective_that_lacks_something_is_refused(tmp_path):
    task = make_task()
    task.objective = type("Halved", (), {"primary": "loss", "percent": False, "loss": 1, "count": 1, "metrics": 1})()
    with pytest.raises(UserError, match="Halved is no objective: it lacks evaluate, lower_is_better"):
        train(tmp_path / "run", task)
