"""What a run survives: damaged checkpoints, a full disk, NaN, dying processes."""

import hashlib
import json
import multiprocessing
import os
import resource
import signal
import tempfile
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from points import Points, build, collate

from core import Classification, UserError
from core.training import Task, TrainConfig, fit
from core.training.checkpoint import checkpoints, newest_whole, read_record
from core.training.tracking import read_metrics


def clean(size=60):
    return Points(size, noise=0.3, jitter=0.0)


def train(run, model=None, data=None, resume=False, **changes):
    plain = {"steps": 20, "batch_size": 12, "warmup": 5, "lr": 1e-2, "log_every": 1, "eval_every": 20}
    config = TrainConfig(**{**plain, "save_every": 5, "precision": "fp32", "device": "cpu", "workers": 0, **changes})
    run.mkdir(exist_ok=True)
    task = Task(model or build(), Classification(), data or clean(), clean(15), collate)
    return fit(task, config, run, resume=resume)


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


# --- damaged checkpoints ----------------------------------------------------------------------------------------------


def cut(path):
    path.write_bytes(path.read_bytes()[:-7])


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("damage", [cut, flip, os.remove])
@pytest.mark.parametrize("name", ["model.safetensors", "state.pt", "step.json"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(tmp_path, name, damage):
    whole = train(tmp_path / "whole")
    train(tmp_path / "run", steps=20, keep=9)
    folder = tmp_path / "run" / "checkpoints"
    for step in (15, 20):
        damage(folder / f"step-{step:08d}" / name)
    with pytest.warns(UserWarning, match="cannot be read|is not what was written"):
        again = train(tmp_path / "run", resume=True, keep=9)
    assert torch.equal(weights(again.model), weights(whole.model))


def test_without_a_whole_checkpoint_there_is_nothing_to_go_on_from(tmp_path):
    train(tmp_path / "run", steps=5)
    cut(tmp_path / "run" / "checkpoints" / "step-00000005" / "state.pt")
    with pytest.raises(UserError, match=r"No checkpoint in .* is whole: .*state\.pt is not what was written"):
        train(tmp_path / "run", resume=True)


def test_a_run_does_not_go_on_with_another_number_of_samples(tmp_path):
    train(tmp_path, steps=5)
    with pytest.raises(UserError, match="began with 60 training samples, and there are 61 now"):
        train(tmp_path, data=clean(61), resume=True)


class Harmful:
    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_checkpoint_that_would_run_code_is_refused(tmp_path):
    """Even with the right checksum."""
    train(tmp_path / "run", steps=5)
    path = tmp_path / "run" / "checkpoints" / "step-00000005"
    harmful = Harmful()
    harmful.path = tmp_path / "harm"
    torch.save({"optimizer": harmful}, path / "state.pt")
    record = json.loads((path / "step.json").read_text())
    record["sha256"]["state.pt"] = hashlib.sha256((path / "state.pt").read_bytes()).hexdigest()
    (path / "step.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match=r"state\.pt is refused, it holds more than tensors"):
        train(tmp_path / "run", resume=True)
    assert not (tmp_path / "harm").exists()


# --- a full disk ------------------------------------------------------------------------------------------------------


@contextmanager
def files_of_at_most(size):
    """Writing more raises an OSError in the middle of a file, as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_stops_nothing_and_is_said(tmp_path, capsys):
    train(tmp_path / "run", build(width=2000), steps=5)
    with files_of_at_most(30_000), pytest.raises(UserError, match=r"step-00000020 cannot be written.*Make room"):
        train(tmp_path / "run", build(width=2000), resume=True)  # the last checkpoint is not to do without
    assert "step-00000010 cannot be written" in capsys.readouterr().out
    folder = tmp_path / "run" / "checkpoints"
    assert [path.name for path in folder.iterdir()] == ["step-00000005"] and read_record(checkpoints(folder)[0])[
        "step"
    ] == 5
    again = train(tmp_path / "run", build(width=2000), resume=True)
    assert torch.equal(weights(again.model), weights(train(tmp_path / "whole", build(width=2000)).model))


def test_a_full_disk_stops_the_run_if_asked_to(tmp_path):
    with files_of_at_most(30_000), pytest.raises(UserError, match=r"step-00000005 cannot be written"):
        train(tmp_path / "run", build(width=2000), on_save_error="stop")
    assert not list((tmp_path / "run" / "checkpoints").iterdir())


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # TensorBoard's
def test_rows_wait_for_room(tmp_path, capsys):
    model, calls = build(), []

    def fill(module, inputs, output):
        calls.append(module.training)
        if sum(calls) in (4, 13) and module.training:
            limits[:] = [2_500] if sum(calls) == 4 else [before[0]]
            resource.setrlimit(resource.RLIMIT_FSIZE, (limits[0], before[1]))

    before, limits = resource.getrlimit(resource.RLIMIT_FSIZE), []
    model.register_forward_hook(fill)
    try:
        train(tmp_path / "run", model, save_every=20)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert limits == [before[0]]
    said = capsys.readouterr().out
    assert "metrics.jsonl cannot be written" in said
    assert [row["step"] for row in read_metrics(tmp_path / "run")] == list(range(1, 21))


# --- a directory that cannot be written -------------------------------------------------------------------------------


@contextmanager
def without_privileges():
    """Permissions mean nothing to root."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


@pytest.fixture
def open_folder():
    """A directory that every user can reach and write to."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o777)
        yield Path(folder)
        os.chmod(folder, 0o777)


def test_a_read_only_directory_is_named(tmp_path, open_folder):
    train(tmp_path / "run")  # everything is imported
    (open_folder / "run").mkdir(mode=0o555)
    with (
        without_privileges(),
        pytest.raises(UserError, match=r"run directory .*run cannot be written: Permission denied"),
    ):
        train(open_folder / "run")
    assert not list((open_folder / "run").iterdir())


def test_a_directory_that_becomes_read_only_costs_no_checkpoint(tmp_path, open_folder, capsys):
    train(tmp_path / "run")
    run, model, calls = open_folder / "run", build(), []

    def lock(module, inputs, output):
        calls.append(module.training)
        if sum(calls) == 8:
            (run / "checkpoints").chmod(0o555)

    model.register_forward_hook(lock)
    with without_privileges(), pytest.raises(UserError, match=r"step-00000020 cannot be written: .*Permission denied"):
        train(run, model)
    assert "step-00000010 cannot be written" in capsys.readouterr().out
    assert [read_record(path)["step"] for path in checkpoints(run / "checkpoints")] == [5]
    (run / "checkpoints").chmod(0o777)
    assert torch.equal(weights(train(run, resume=True).model), weights(train(tmp_path / "whole").model))


# --- NaN --------------------------------------------------------------------------------------------------------------


class Poison:
    """Makes a layer's output (or its gradient) NaN in one call of training."""

    def __init__(self, layer, call, gradient=False):
        self.calls, self.call, self.gradient = 0, call, gradient
        layer.register_forward_hook(self)

    def __call__(self, module, inputs, output):
        self.calls += module.training
        if module.training and self.calls == self.call:
            if self.gradient:
                output.register_hook(lambda grad: grad * torch.nan)
                return output
            return output * torch.nan
        return output


def test_halting_saves_what_was_before(tmp_path):
    model = build()
    Poison(model[0], call=8)
    with pytest.raises(UserError, match=r"Step 8: the loss is not finite; computed again it is finite"):
        train(tmp_path / "run", model)
    assert [read_record(path)["step"] for path in checkpoints(tmp_path / "run" / "checkpoints")] == [5, 7]
    again = train(tmp_path / "run", resume=True)
    assert torch.equal(weights(again.model), weights(train(tmp_path / "whole").model))


@pytest.mark.parametrize("gradient", [False, True])
def test_skipping_leaves_out_the_step(tmp_path, capsys, gradient):
    model = build()
    Poison(model[3], call=8, gradient=gradient)
    found = train(tmp_path / "run", model, on_divergence="skip")
    kind = "gradient" if gradient else "loss"
    assert f"step 8: the {kind} is not finite" in capsys.readouterr().out
    assert found.finished and weights(found.model).isfinite().all() and found.metrics["accuracy"] > 0.5


def test_rolling_back_halves_the_rate(tmp_path, capsys):
    model = build()
    Poison(model[0], call=8)
    found = train(tmp_path / "run", model, on_divergence="rollback")
    assert "back to step 5, the learning rate times 0.5" in capsys.readouterr().out
    rows, plain = read_metrics(tmp_path / "run"), read_metrics(train_plain(tmp_path))
    assert [row["step"] for row in rows] == list(range(1, 21)) and found.finished
    assert [row["lr"] / other["lr"] for row, other in zip(rows, plain, strict=True)] == [1.0] * 5 + [0.5] * 15


def test_rolling_back_twice_halves_the_rate_twice(tmp_path, capsys):
    model = build()
    Poison(model[0], call=8)
    Poison(model[0], call=15)
    train(tmp_path / "run", model, on_divergence="rollback")
    said = capsys.readouterr().out
    assert "the learning rate times 0.5" in said and "the learning rate times 0.25" in said


def train_plain(tmp_path):
    train(tmp_path / "plain")
    return tmp_path / "plain"


@pytest.mark.parametrize("policy", ["skip", "rollback"])
def test_a_run_that_cannot_recover_ends(tmp_path, policy):
    model = build()
    model[3].register_forward_hook(lambda module, inputs, output: output * torch.nan if module.training else output)
    with pytest.raises(UserError, match=r"Step \d+: the loss is not finite; 3 is the first layer to give NaN or inf"):
        train(tmp_path / "run", model, on_divergence=policy)


def test_a_spoilt_sample_is_named(tmp_path):
    data = clean()
    data.points[17, 1] = torch.nan
    with pytest.raises(UserError, match=r"training sample 17 holds NaN or inf"):
        train(tmp_path / "run", data=data)
    found = train(tmp_path / "other", data=data, on_divergence="skip")
    assert found.finished and weights(found.model).isfinite().all()


def test_a_bad_gradient_is_traced_to_its_layer(tmp_path):
    class Bad(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            return grad * torch.inf

    model = build()
    model[0].register_forward_hook(lambda module, inputs, output: Bad.apply(output))
    with pytest.raises(UserError, match=r"the gradient is not finite; the gradient of 0\.bias is not finite"):
        train(tmp_path / "run", model)


# --- data -------------------------------------------------------------------------------------------------------------


class Dies(Points):
    def __getitem__(self, index):
        if index == 17:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(index)


class Gone(Points):
    def __getitem__(self, index):
        if index == 17:
            raise UserError("pictures/17.png is gone.")
        return super().__getitem__(index)


@pytest.mark.parametrize(
    "kind, words", [(Dies, "A data loading process died.* --resume"), (Gone, "pictures/17.png is gone")]
)
def test_trouble_with_data_loses_nothing(tmp_path, kind, words):
    data = kind(60, noise=0.3, jitter=0.0)
    with pytest.raises(UserError, match=words):
        train(tmp_path / "run", data=data, workers=1, save_every=2)
    again = train(tmp_path / "run", resume=True)
    assert torch.equal(weights(again.model), weights(train(tmp_path / "whole").model))
    assert [row["step"] for row in read_metrics(tmp_path / "run")] == list(range(1, 21))


def test_a_killed_worker_costs_no_step(tmp_path):
    """Its death is found where batches are fetched, not in the midst of a step; what was done is saved."""
    model, calls = build(), []

    def kill(module, inputs, output):
        calls.append(module.training)
        if sum(calls) == 8:
            for worker in multiprocessing.active_children():
                worker.kill()
                os.waitid(os.P_PID, worker.pid, os.WEXITED | os.WNOWAIT)

    model.register_forward_hook(kill)
    with pytest.raises(UserError, match="A data loading process died"):
        train(tmp_path / "run", model, workers=1, save_every=20)
    step = read_metrics(tmp_path / "run")[-1]["step"]
    assert step >= 8 and newest_whole(tmp_path / "run" / "checkpoints")[0].name == f"step-{step:08d}"
    again = train(tmp_path / "run", resume=True)
    assert torch.equal(weights(again.model), weights(train(tmp_path / "whole").model))
