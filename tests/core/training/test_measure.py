"""Further figures that a task takes of its model: they are logged, and change nothing."""

import os
import random
import signal

import numpy as np
import pytest
import torch
from points import Points, build, collate
from safetensors.torch import load_file

from core import Classification, UserError
from core.training import Task, TrainConfig, fit
from core.training.throughput import TIMED
from core.training.tracking import read_metrics


def measure(model):
    """A figure that depends on all that may not leak: random numbers, training mode, gradients."""
    assert not model.training and not torch.is_grad_enabled()
    assert all(p.grad is None for p in model.parameters())
    drawn = torch.rand(1).item() + random.random() + np.random.rand()
    model.train()
    output = model(torch.ones(4, 3))
    return {"probe_drawn": drawn, "probe_output": output.mean().item()}


def train(run, measure, resume=False, data=None):
    run.mkdir(exist_ok=True)
    rhythm = {"save_every": 4, "log_every": 3, "eval_every": 4}
    plain = {"steps": 12, "batch_size": 12, "warmup": 1, "workers": 0, "precision": "fp32", "device": "cpu"}
    splits = {"train": data or Points(), "validation": Points(12), "test": Points(12)}
    task = Task(build(dropout=0.5), Classification(), **splits, collate=collate, measure=measure)
    return fit(task, TrainConfig(**rhythm, **plain, ema=0.9), run, resume=resume)


def rows(run):
    return [{name: value for name, value in row.items() if name not in TIMED} for row in read_metrics(run)]


def weights(run, step=12):
    return load_file(run / "checkpoints" / f"step-{step:08d}" / "model.safetensors")


def test_a_run_with_measurements_is_the_run_without(tmp_path):
    result = train(tmp_path / "with", measure)
    assert train(tmp_path / "without", None).measured == {}
    for name, value in weights(tmp_path / "without").items():
        assert torch.equal(weights(tmp_path / "with")[name], value)
    first, *found = rows(tmp_path / "with")
    assert first.keys() == {"step", "probe_drawn", "probe_output"} and first["step"] == 0
    measured = {row["step"]: row.pop("probe_output") for row in found if row.pop("probe_drawn", None)}
    assert measured.keys() == {4, 8, 12} and measured[12] == result.measured["probe_output"]
    assert found == rows(tmp_path / "without")


@pytest.mark.parametrize("killed", [1, 4, 6, 9])
def test_a_resumed_run_has_the_same_figures(tmp_path, killed):
    """Killed before a step, with the step's row perhaps written and its checkpoint not."""
    train(tmp_path / "whole", measure)
    seen = 0

    class Deadly(Points):
        def __getitem__(self, index):
            nonlocal seen
            seen += 1
            if seen > 1 + 12 * killed:  # one is read to see how large it is
                raise UserError("killed")
            return super().__getitem__(index)

    run = tmp_path / "run"
    with pytest.raises(UserError, match="killed"):
        train(run, measure, data=Deadly())
    assert rows(run)[0]["step"] == 0
    train(run, measure, resume=True)
    assert rows(run) == rows(tmp_path / "whole")


def test_a_signal_lets_a_measurement_finish(tmp_path):
    def interrupted(model):
        nonlocal count
        count += 1
        if count == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return measure(model)

    count = 0
    train(tmp_path / "whole", measure)
    result = train(tmp_path / "run", interrupted)
    assert not result.finished and result.step == 4 and "probe_output" in rows(tmp_path / "run")[-1]
    train(tmp_path / "run", measure, resume=True)
    assert rows(tmp_path / "run") == rows(tmp_path / "whole")
