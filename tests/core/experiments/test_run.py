"""A run's directory: one owner at a time, its own checkpoints, and a start that fails leaves it as it was."""

import json
import multiprocessing
import os
import re
import shutil
import time
from pathlib import Path

import pytest
import torch
from points import build
from runs import TINY, refused, short_fit, train

from core import UserError
from core.experiments.run import make_folder, old_run, open_run, owned
from core.files import read_json
from core.training.checkpoint import newest_whole
from core.training.tracking import read_metrics
from vision.train import digits

pytestmark = pytest.mark.usefixtures("elsewhere")


# --- one owner --------------------------------------------------------------------------------------------------------


def hold(run, taken):
    with owned(run):
        taken.set()
        time.sleep(60)


def test_a_run_has_one_owner_who_may_be_killed(capsys):
    train(*TINY, "--train.steps", "3", "--out", "run")
    fork = multiprocessing.get_context("fork")
    taken = fork.Event()
    other = fork.Process(target=hold, args=(Path("run"), taken))
    other.start()
    assert taken.wait(60)
    sentence = refused(capsys, "digits", "--out", "run", "--resume", "--train.steps", "6")
    assert f"run is in use by process {other.pid} on " in sentence
    assert "run is in use by process" in refused(capsys, *TINY, "--out", "run")
    other.kill()
    other.join()
    train("digits", "--out", "run", "--resume", "--train.steps", "6")
    assert json.loads(Path("run/summary.json").read_text())["steps"] == 6 and not Path("run/.lock").exists()


def test_the_lock_of_a_directory_that_was_replaced_is_left_alone():
    Path("run").mkdir()
    with owned(Path("run")):
        shutil.rmtree("run")
        Path("run").mkdir()
        Path("run/.lock").write_text("of another process")
    assert Path("run/.lock").exists()


def test_runs_without_a_name_take_directories_of_their_own():
    with open_run(digits(), "digits") as first, open_run(digits(), "digits") as second:
        assert (first.path, second.path) == (Path("runs/digits"), Path("runs/digits-2")) and first.id != second.id
    assert not Path("runs").exists()  # neither of them came to anything


def test_the_newest_run_has_the_highest_number():
    for name in ("digits", "digits-3", "digits-10", "digits-sweep", "digits-x", "digits-masked-20"):
        Path("runs", name).mkdir(parents=True)
        Path("runs", name, "config.json").touch()
    assert old_run(None, "digits") == Path("runs/digits-10")
    assert make_folder(None, "digits")[0] == Path("runs/digits-11")
    assert make_folder(None, "digits-sweep")[0] == Path("runs/digits-sweep-2")


def test_a_link_that_leads_nowhere_holds_no_run():
    Path("dangling").symlink_to("nowhere/at-all")
    Path("runs").symlink_to("nowhere/at-all")
    for out in (Path("dangling"), Path("dangling/run"), None):
        with pytest.raises(UserError, match="a link on its path leads nowhere"):
            make_folder(out, "digits")


def test_a_file_system_without_locks_is_said(monkeypatch, capsys):
    def none(*_):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr("fcntl.lockf", none)
    with owned(Path(".")):
        pass
    assert "this file system has no locks" in capsys.readouterr().err and not Path(".lock").exists()


# --- its own checkpoints ----------------------------------------------------------------------------------------------


def test_damaged_checkpoints_push_no_healthy_one_out():
    short_fit("run")
    for step in (6, 9):
        path = Path(f"run/checkpoints/step-{step:08d}/state.pt")
        path.write_bytes(path.read_bytes()[:-7])
    simple_model = build()
    with pytest.warns(UserWarning, match="is not what was written"):
        short_fit("run", resume=True, model=simple_model, keep=2, steps=4)
    assert newest_whole(Path("run/checkpoints"))[0].name == "step-00000004"
    assert Path("run/checkpoints/step-00000003").exists()


def test_another_runs_checkpoints_are_not_adopted(capsys):
    train(*TINY, "--train.steps", "30", "--out", "run")
    Path("run/config.json").unlink()
    train(*TINY, "--train.steps", "9", "--out", "run", "--train.seed", "1", "--train.keep", "1")
    assert (Path("run/checkpoints") / "step-00000030").exists()  # left alone
    capsys.readouterr()
    train("digits", "--out", "run", "--resume", "--train.steps", "10")
    assert "step 10: test" in capsys.readouterr().out and [row["step"] for row in read_metrics(Path("run"))][-1] == 10


def test_fit_starts_no_run_over(tmp_path):
    short_fit(tmp_path)
    with pytest.raises(UserError, match="holds checkpoints of this run already"):
        short_fit(tmp_path)


# --- a start that fails -----------------------------------------------------------------------------------------------


NO_ROOM = "needs .* GiB, but there are .* GiB of memory: choose a smaller"


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """A run of six steps."""
    folder = tmp_path_factory.mktemp("begun")
    train(*TINY, "--train.steps", "6", "--out", folder)
    return folder


@pytest.mark.parametrize(
    "words, sentence",
    [
        (["--train.lr", "-1"], "--train.lr must be more than 0"),
        (["--train.ema", "0.9"], "no running average"),
        (["--model.depth", "2"], "model.encoder.depth is 2, and was 1"),
        (["--model.activation", "relu"], "model.encoder.activation is relu, and was gelu"),
        (["--data.test-fraction", "0.5"], "data.test_fraction is 0.5, and was 0.2"),
        (["--train.steps", "2"], "at step 6 already"),
        (["--train.batch-size", "7", "--train.accumulate", "2"], "cannot be cut into 2"),
        (["--train.batch-size", "1048576", "--train.accumulate", "1"], NO_ROOM),
        (
            ["--train.tokens-per-batch", "512", "--train.batch-size", "8"],
            "batch-size has no effect, because --train.tok",
        ),
        (["--train.device", "mps"], "no such device"),
        (["--tune", "lora"], "needs something to start from"),
    ],
)
def test_a_resume_that_fails_leaves_the_run_as_it_was(begun, capsys, words, sentence, monkeypatch):
    shutil.copytree(begun, "run")
    with monkeypatch.context() as patched:
        if sentence == NO_ROOM:
            patched.setattr("core.memory.total_memory", lambda: 2**20)
            patched.setattr("core.experiments.cli.limit_memory", lambda: None)  # which would hold for all other tests
        assert re.search(sentence, refused(capsys, "digits", "--out", "run", "--resume", *words))
    train("digits", "--out", "run", "--resume", "--train.steps", "7")
    assert read_json(Path("run/summary.json"))["steps"] == 7


@pytest.mark.parametrize("name, kind", [("summary.json", "file"), ("report.html", "file"), ("model", "directory")])
def test_what_stands_where_a_run_writes_is_named_before_the_work(begun, capsys, name, kind):
    shutil.copytree(begun, "run")
    place = Path("run") / name
    if kind == "file":
        place.unlink()
        place.mkdir()
    else:
        shutil.rmtree(place)
        place.write_text("")
    said = refused(capsys, "digits", "--out", "run", "--resume", "--train.steps", "7")
    assert said == f"error: {place} is not a {kind}: move it away, for a run writes its own there."


def test_a_fresh_start_that_fails_leaves_nothing(monkeypatch, capsys):
    def fail(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    with monkeypatch.context() as patched:
        patched.setattr("core.training.loop.step_gradients", fail)
        with pytest.raises(SystemExit):
            train(*TINY, "--out", "mine/run")
    assert "not enough memory for a step of this run" in capsys.readouterr().err and not Path("mine").exists()
    Path("mine").mkdir()
    Path("mine/notes.txt").write_text("keep me")
    with monkeypatch.context() as patched:
        patched.setattr("core.training.loop.step_gradients", fail)
        with pytest.raises(SystemExit):
            train(*TINY, "--out", "mine")
    assert [path.name for path in Path("mine").iterdir()] == ["notes.txt"]
    train(*TINY, "--train.steps", "3", "--out", "mine")


def test_a_run_directory_has_a_name_that_is_text(capsys):
    said = refused(capsys, *TINY, "--out", os.fsdecode(b"run\xff"))
    assert said == "error: --out run\\xff is not valid UTF-8 text: choose another name." and not os.listdir()
