"""A run's directory: one owner at a time, its own checkpoints, and a start that fails leaves it as it was."""

import json
import multiprocessing
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from plain import plain
from points import Points, build, collate

from core import Classification, UserError
from core.experiments import train_command
from core.experiments.fixed import check_unchanged, save_samples
from core.experiments.run import make_folder, old_run, open_run, owned
from core.files import _exchange, filling, read_json, replacing_folder
from core.training import Task, TrainConfig, fit
from core.training.checkpoint import newest_whole
from core.training.tracking import read_metrics
from text.train import TEXT
from vision.train import VISION, digits

TINY = ["digits", "--train.batch-size", "8", "--train.warmup", "1", "--train.log-every", "1", "--train.device", "cpu"]
TINY += ["--model.dim", "8", "--model.heads", "1", "--model.depth", "1", "--train.keep", "9", "--train.save-every", "3"]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def train(*words, modality=VISION):
    train_command(plain(modality), [str(word) for word in words])


def refused(capsys, *words, modality=VISION):
    """The sentence with which a command ends, having changed nothing."""
    before = contents(Path("run"))
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        train(*words, modality=modality)
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert end.value.code == 1 and said.startswith("error: ") and contents(Path("run")) == before
    return said


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def simple(run, resume=False, model=None, **changes):
    plain = {"steps": 9, "batch_size": 12, "warmup": 1, "save_every": 3, "precision": "fp32", "device": "cpu"}
    config = TrainConfig(**{**plain, "workers": 0, "log_every": 1, "eval_every": 9, "keep": 9, **changes})
    task = Task(model or build(), Classification(), Points(), Points(12), collate)
    return fit(task, config, Path(run), resume=resume)


# --- one owner --------------------------------------------------------------------------------------------------------

HOLD = """
import sys, time
from pathlib import Path
from core.experiments.run import owned
with owned(Path(sys.argv[1])):
    print("mine", flush=True)
    time.sleep(60)
"""


def test_a_run_has_one_owner_who_may_be_killed(capsys):
    train(*TINY, "--train.steps", "3", "--out", "run")
    other = subprocess.Popen([sys.executable, "-c", HOLD, "run"], stdout=subprocess.PIPE, text=True)
    assert other.stdout.readline() == "mine\n"
    sentence = refused(capsys, "digits", "--out", "run", "--resume", "--train.steps", "6")
    assert f"run is in use by process {other.pid} on " in sentence
    assert "run is in use by process" in refused(capsys, *TINY, "--out", "run")
    other.kill()
    other.wait()
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
    simple("run")
    for step in (6, 9):
        path = Path(f"run/checkpoints/step-{step:08d}/state.pt")
        path.write_bytes(path.read_bytes()[:-7])
    simple_model = build()
    with pytest.warns(UserWarning, match="is not what was written"):
        simple("run", resume=True, model=simple_model, keep=2, steps=4)
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
    simple(tmp_path)
    with pytest.raises(UserError, match="holds checkpoints of this run already"):
        simple(tmp_path)


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


def test_a_directory_is_replaced_in_one_step(tmp_path, monkeypatch):
    """A kill between two renames would find none."""
    for name in ("one", "other"):
        (tmp_path / "try" / name).mkdir(parents=True)
    if not _exchange(tmp_path / "try" / "one", tmp_path / "try" / "other"):
        pytest.skip("this file system cannot swap directories")
    shutil.rmtree(tmp_path / "try")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "old").write_text("")
    monkeypatch.setattr("os.replace", lambda *_: pytest.fail("this takes two steps"))
    with replacing_folder(tmp_path / "model") as partial:
        (partial / "new").write_text("")
    assert os.listdir(tmp_path) == ["model"] and os.listdir(tmp_path / "model") == ["new"]


@pytest.mark.parametrize("fill", [replacing_folder, filling])
@pytest.mark.parametrize("swaps", [True, False])
def test_a_directory_in_its_place_is_new_or_as_it_was(tmp_path, monkeypatch, fill, swaps):
    if not swaps:
        monkeypatch.setattr("core.files._exchange", lambda *_: False)
    folder = tmp_path / "model"
    (folder / "inner").mkdir(parents=True)
    (folder / "inner" / "old").write_text("")
    with pytest.raises(KeyError), fill(folder) as partial:
        (partial / "inner").mkdir()
        raise KeyError
    assert os.listdir(folder / "inner") == ["old"]
    with fill(folder) as partial:
        (partial / "inner").mkdir()
        (partial / "inner" / "new").write_text("")
    assert os.listdir(tmp_path) == ["model"] and os.listdir(folder) == ["inner"]
    assert os.listdir(folder / "inner") == ["new"]


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


# --- what the first start fixed ---------------------------------------------------------------------------------------


def test_a_resumed_run_keeps_its_classes(pictures_of, capsys):
    folder = pictures_of("cat", "dog")
    small = ["--model.image-size", "8", "--model.patch-size", "4", "--train.workers", "0", "--train.accumulate", "1"]
    train("folder", "--data.path", folder, *TINY[1:], *small, "--train.steps", "3", "--out", "run")
    (folder / "cat").rename(folder / "kitten")
    again = ["folder", "--out", "run", "--resume", "--train.steps", "4"]
    sentence = refused(capsys, *again)
    assert "there is a class 'kitten' now, and none called 'cat'" in sentence and "--init run" in sentence
    (folder / "kitten").rename(folder / "cat")
    (folder / "cat" / "3.png").rename(folder / "dog" / "9.png")
    assert "cat/3.png of the " in refused(capsys, *again)
    (folder / "dog" / "9.png").rename(folder / "cat" / "3.png")
    shutil.copy(folder / "cat" / "3.png", folder / "cat" / "9.png")
    assert "cat/" in refused(capsys, *again)
    (folder / "cat" / "9.png").unlink()
    moved = folder.rename("elsewhere")
    train(*again, "--data.path", moved)
    assert read_json(Path("run/summary.json"))["steps"] == 4


def test_a_resumed_run_keeps_its_vocabulary(capsys):
    rows = [f"the {word} number {n},{label}" for n, (word, label) in enumerate([("red", "a"), ("blue", "b")] * 10)]
    Path("list.csv").write_text("\n".join(["text,label", *rows]))
    tiny = ["--model.dim", "8", "--model.heads", "1", "--model.depth", "1", "--data.tokenizer.vocab-size", "60"]
    steps = ["--train.batch-size", "4", "--train.device", "cpu", "--train.workers", "0"]
    first = ["manifest", "--data.path", "list.csv", *tiny, *steps, "--train.steps", "2", "--out", "run"]
    train(*first, modality=TEXT)
    words = Path("run/tokenizer.json").read_bytes()
    again = ["manifest", "--out", "run", "--resume", "--train.steps", "3"]
    Path("list.csv").write_text("\n".join(["text,label", *rows, *["something quite different,a"] * 20]))
    assert "is new" in refused(capsys, *again, modality=TEXT)
    Path("list.csv").write_text("\n".join(["text,label", *rows]))
    assert "data.tokenizer.vocab_size is 90, and was 60" in refused(
        capsys, *again, "--data.tokenizer.vocab-size", "90", modality=TEXT
    )
    train(*again, modality=TEXT)
    assert Path("run/tokenizer.json").read_bytes() == Path("run/model/tokenizer.json").read_bytes() == words


@pytest.mark.parametrize(
    "now, sentence",
    [
        ({"train": [("a", "x"), ("b", "y")], "test": [("c", "x"), ("d", "x")]}, "d is new"),
        ({"train": [("a", "x")], "test": [("c", "x")]}, "b of the train split is gone"),
        ({"train": [("a", "x"), ("b", "z")], "test": [("c", "x")]}, "b is labelled z, and was labelled y"),
        (
            {"train": [("a", "x")], "test": [("c", "x"), ("b", "y")]},
            "b is in the test split, and was",
        ),
        ({"train": [("b", "y"), ("a", "x")], "test": [("c", "x")]}, "in another order"),
        ({"train": [("a", "x"), ("b", "y"), ("b", "y")], "test": [("c", "x")]}, "b is there 2 times, and was 1"),
    ],
)
def test_a_difference_in_the_samples_is_named(tmp_path, now, sentence):
    save_samples(tmp_path, {"train": [("a", "x"), ("b", "y")], "test": [("c", "x")]})
    with pytest.raises(UserError, match=sentence):
        check_unchanged(tmp_path, digits(), digits(), now)


def test_samples_whose_names_are_no_text_are_held(tmp_path):
    name = os.fsdecode(b"\xff.png")
    save_samples(tmp_path, {"train": [(name, "x")]})
    check_unchanged(tmp_path, digits(), digits(), {"train": [(name, "x")]})
    with pytest.raises(UserError, match="is gone"):
        check_unchanged(tmp_path, digits(), digits(), {"train": [("a.png", "x")]})


def test_a_run_directory_has_a_name_that_is_text(capsys):
    said = refused(capsys, *TINY, "--out", os.fsdecode(b"run\xff"))
    assert said == "error: --out run\\xff is not valid UTF-8 text: choose another name." and not os.listdir()


def test_what_may_change_changes(tmp_path):
    now = digits()
    now = replace(now, init="moved/elsewhere", train=replace(now.train, lr=0.5), model=replace(now.model, dropout=0.2))
    check_unchanged(tmp_path, digits(), now, {})


# --- signals, and an output that nobody reads -------------------------------------------------------------------------


def command(*words, **how):
    return subprocess.Popen([sys.executable, "-m", "vision.train", *map(str, words)], **how)


def wait_for(condition):
    until = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)


@pytest.fixture
def pictures_of(tmp_path):
    from PIL import Image

    def make(*names):
        for number, name in enumerate(names):
            (tmp_path / "data" / name).mkdir(parents=True)
            for index in range(6):
                Image.new("RGB", (8, 8), (40 * index, 200 * number, 99)).save(tmp_path / "data" / name / f"{index}.png")
        return tmp_path / "data"

    return make


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_to_the_whole_group_costs_no_step(pictures_of, number):
    """Loading processes get it too."""
    small = ["--model.image-size", "8", "--model.patch-size", "4", "--train.workers", "2", "--train.accumulate", "1"]
    words = ["folder", "--data.path", pictures_of("a", "b"), *TINY[1:], *small, "--out", "run"]
    run = command(*words, "--train.save-every", "100000", stdout=subprocess.PIPE, text=True, start_new_session=True)
    wait_for(lambda: Path("run/metrics.jsonl").exists() and len(read_metrics(Path("run"))) > 3)
    os.killpg(run.pid, number)
    said = run.communicate()[0]
    assert run.returncode == 130 and "go on with: python -m vision.train folder --out run --resume" in said
    step = read_metrics(Path("run"))[-1]["step"]
    assert [path.name for path in Path("run/checkpoints").iterdir()] == [f"step-{step:08d}"]


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
def test_loading_processes_that_cannot_all_be_started_are_ended(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.open(os.devnull, os.O_RDONLY)
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free + 12, hard))
    try:
        with pytest.raises(UserError, match=r"cannot be started \(Too many open files\): choose fewer"):
            simple(tmp_path, workers=9)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        left = multiprocessing.active_children()
        for worker in left:  # which would keep the tests from ending
            worker.kill()
    assert not left


def test_nobody_need_read_what_a_run_says():
    """Its pipe is closed, or its log's disk is full: it is trained to its end."""
    run = command(*TINY, "--train.steps", "6", "--out", "run", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    run.stdout.close()
    run.stderr.close()
    assert run.wait() == 0 and read_json(Path("run/summary.json"))["steps"] == 6
    if Path("/dev/full").exists():
        with open("/dev/full", "w") as full:
            run = command("digits", "--resume", "--out", "run", "--train.steps", "7", stdout=full, stderr=full)
        assert run.wait() == 0 and read_json(Path("run/summary.json"))["steps"] == 7


def test_a_log_is_not_filled_with_a_bar():
    run = command(*TINY, "--train.steps", "30", "--out", "run", stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    said = run.communicate()[0].decode()
    assert run.returncode == 0 and "\r" not in said and len(said.splitlines()) < 6
