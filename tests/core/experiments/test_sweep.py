"""Sweeps: which options span a grid, the options of each run, and that signals and failures leave nothing half done."""

import json
import os
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from listed_jobs import listing
from processes import start
from runs import SMALLEST

from core import to_dict
from core.experiments import sweep, train_command
from core.experiments.sweep import run_sweep
from core.training.interruptions import STOPS
from core.training.tracking import read_metrics
from text.train import TEXT
from vision.train import VISION

TINY = [*SMALLEST, "--train.warmup", "2", "--train.steps", "100", "--train.eval-every", "50"]
SEEDS = ["digits", "--train.seed", "0", "1", *TINY]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch, without_figures):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # in the runs


@pytest.fixture
def commands(monkeypatch):
    """Runs are not started, but listed."""
    listed = []
    monkeypatch.setattr(sweep, "running", listing(lambda command: listed.append(command[1:]) or 0))
    return listed


def train(*argv, modality=VISION):
    train_command(modality, [str(word) for word in argv])


def ended(*argv, modality=VISION):
    """The exit code."""
    with pytest.raises(SystemExit) as exit:
        train(*argv, modality=modality)
    return exit.value.code


# --- what a command line means ----------------------------------------------------------------------------------------


def names(commands):
    return [Path(command[command.index("--out") + 1]).name for command in commands]


def test_every_combination_is_a_run_of_its_own(commands):
    train(
        "digits", "--train.seed", "0", "1", "--model.depth", "2", "4", "--train.steps=6", "--train.betas", "0.9", "0.95"
    )
    assert names(commands) == ["seed=0,depth=2", "seed=0,depth=4", "seed=1,depth=2", "seed=1,depth=4"]
    options = ["--train.seed", "0", "--model.encoder.depth", "4", "--train.steps=6", "--train.betas", "0.9", "0.95"]
    assert commands[1] == ["-m", "vision.train", "digits", *options, "--out", "runs/digits-sweep/seed=0,depth=4"]
    train("digits", "--train.seed", "0", "1")
    assert Path(commands[-1][-1]) == Path("runs/digits-sweep-2/seed=1")


@pytest.mark.parametrize(
    "options, found",
    [
        (["--train.batch_size", "8", "16"], ["batch_size=8", "batch_size=16"]),
        (["--train.lr", "1e-3", "0.0005"], ["lr=0.001", "lr=0.0005"]),
        (["--model.pool", "cls", "mean"], ["pool=cls", "pool=mean"]),
        (["--train.workers", "None", "0"], ["workers=None", "workers=0"]),
        (["--model.qk-norm", "True", "False"], ["qk_norm=True", "qk_norm=False"]),
        (["--model.dropout", "0", "0.1", "--model.encoder.dropout", "0", "0.2"], None),
        (["--data.augment.policy", "a/b", "../c d"], ["policy=a_b-", "policy=.._c_d-"]),
    ],
)
def test_runs_are_named_by_what_varies(options, found, commands):
    train("digits", *options)
    if found is None:
        found = [f"model.dropout={a},model.encoder.dropout={b}" for a in ("0.0", "0.1") for b in ("0.0", "0.2")]
    assert [name[: len(start)] for name, start in zip(names(commands), found, strict=True)] == found
    assert all(
        len(name) < 50 and set(name) <= set(map(chr, range(33, 127))) - set("/\\:*?") for name in names(commands)
    )


def test_flags_are_swept_by_their_two_forms(commands):
    train("digits", "--model.qk_norm", "True", "False")
    assert [command[3] for command in commands] == ["--model.encoder.qk_norm", "--model.encoder.no-qk_norm"]


def test_other_modalities_sweep_their_own_options(commands):
    train("docstrings", "--init", "runs/manuals", "hf-hub:x/y", modality=TEXT)
    assert [command[1] for command in commands] == ["text.train"] * 2
    assert names(commands)[0].startswith("init=runs_manuals-") and len(set(names(commands))) == 2


@pytest.mark.parametrize(
    "option",
    [["--train.betas", "0.8", "0.9"], ["--model.image-size", "8", "8"], ["--model.patterns", "Local(4)", "Local(8)"]],
)
def test_options_that_take_several_values_span_nothing(option, commands, monkeypatch):
    trained = []
    monkeypatch.setattr("core.experiments.command.train_experiment", lambda *given: trained.append(given))
    train("digits", *option)
    assert len(trained) == 1 and not commands and not Path("runs").exists()


# --- bad input --------------------------------------------------------------------------------------------------------


def held(words="--train.seed 0 1", command="vision.train", experiment="digits"):
    """A directory with a sweep that was begun."""
    Path("held").mkdir()
    record = {"command": command, "experiment": experiment, "options": words.split(), "runs": {}}
    Path("held/sweep.json").write_text(json.dumps(record))


@pytest.mark.parametrize(
    "argv, words",
    [
        ("--train.accumulate 1 7", "cannot be cut into 7"),
        ("--train.seed 0 1 0", "has seed=0 twice"),
        ("--train.lr 1e-3 0.001", "has lr=0.001 twice"),
        ("--train.seed 0 1 --train.seed 2", "--train.seed is given twice"),
        ("--train.compile True maybe", "True and False, not maybe"),
        ("--train.seed 0 1 --out file", "file is a file"),
        ("--train.seed 0 1 --out run", "run already holds a run"),
        (
            "--train.seed 0 1 --out held",
            "held already holds a sweep: choose another --out, or go on with it by --resume",
        ),
        ("--train.seed 0 1 --resume", "runs/digits-sweep holds no sweep to resume"),
        ("--train.steps 9 --out held --resume", "held is a sweep, with settings of its own: leave out --train.steps 9"),
        ("--train.seed 0 1 --out other --resume", "other is a sweep of python -m audio.train dtmf"),
    ],
)
def test_a_mistake_gets_one_sentence_and_starts_nothing(argv, words, commands, capsys):
    held(command="audio.train", experiment="dtmf")
    Path("held").rename("other")
    held()
    Path("file").write_text("text")
    Path("run").mkdir()
    Path("run/config.json").write_text("{}")
    before = sorted(Path().rglob("*"))
    assert ended("digits", *argv.split()) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and words in error
    assert not commands and sorted(Path().rglob("*")) == before


@pytest.mark.parametrize("argv", ["--train.steps 6 six", "--train.sead 0 1", "--model.pool cls meen"])
def test_a_typo_is_found_before_anything_starts(argv, commands, capsys):
    assert ended("digits", *argv.split()) == 2
    assert argv.split()[0] in capsys.readouterr().err
    assert not commands and not list(Path().iterdir())


def test_torchrun_is_refused(commands, monkeypatch, capsys):
    monkeypatch.setenv("RANK", "0")
    assert ended(*SEEDS) == 1
    assert "without torchrun" in capsys.readouterr().err and not commands and not Path("runs").exists()


def test_help_is_help(commands, capsys):
    assert ended("digits", "--train.seed", "0", "1", "--help") == 0
    help = capsys.readouterr().out
    assert "--train.seed 0 1 2" in help and "--search 'train.lr=log(" in help and not commands


# --- runs that fail, and signals --------------------------------------------------------------------------------------


TOY = """
import os, pathlib, signal, sys, time
given = dict(zip(sys.argv, sys.argv[1:]))
out, seed = pathlib.Path(given["--out"]), given["--train.seed"]
open("calls", "a").write(f"{seed} {'--resume' in sys.argv}\\n")
out.mkdir(exist_ok=True)
if pathlib.Path("mended").exists() or seed == "0":
    (out / "summary.json").write_text('{"metrics": {"accuracy": 0.5}}')
elif seed == "1":
    sys.exit(3)
elif seed == "2":
    os.kill(os.getpid(), signal.SIGKILL)
else:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit((out / "saved").touch() or 130))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
    pathlib.Path("waiting").touch()
    time.sleep(60)
"""


@pytest.fixture
def toy():
    """A sweep of a command that fails, dies or waits, as the seed says, till it is mended."""
    Path("toy.py").write_text(TOY)
    default = VISION.experiments[0]()

    def parse(words):
        return replace(default, train=replace(default.train, seed=int(words[-1])))

    def run(*words):
        run_sweep("toy", "digits", words, default, parse)

    return run


def test_a_run_that_fails_takes_no_other_along(toy, capfd):
    with pytest.raises(sweep.UserError, match=r"2 of 3 runs failed: seed=1 \(exit code 3\), seed=2 \(SIGKILL\)"):
        toy("--train.seed", "1", "2", "0", "--out", "s")
    assert Path("calls").read_text() == "1 False\n2 False\n0 False\n"
    Path("mended").touch()
    begun = replace(VISION.experiments[0](), train=replace(VISION.experiments[0]().train, seed=2))
    Path("s/seed=2/config.json").write_text(json.dumps({"experiment": "digits", **to_dict(begun)}))
    toy("--out", "s", "--resume")
    assert Path("calls").read_text().splitlines()[3:] == ["1 False", "2 True"]
    assert "[3/3] seed=0: finished before" in capfd.readouterr().out


def test_sigterm_is_passed_on_and_stops_the_sweep(toy, capfd):
    def terminate():
        while not Path("waiting").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=terminate, daemon=True).start()
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as exit:
        toy("--train.seed", "0", "3", "4", "--out", "s")
    assert exit.value.code == 130 and Path("s/seed=3/saved").exists() and not Path("s/seed=4").exists()
    assert "with 2 of 3 runs to go; go on with: python -m toy digits --out s --resume" in capfd.readouterr().out
    assert signal.getsignal(signal.SIGTERM) is before
    Path("mended").touch()
    toy("--out", "s", "--resume")
    assert Path("calls").read_text() == "0 False\n3 False\n3 False\n4 False\n"


def wait_for_steps(run):
    while not read_metrics(run):
        time.sleep(0.01)


def results(out):
    return {run.parent.name: json.loads(run.read_text())["metrics"] for run in sorted(out.glob("*/summary.json"))}


def test_ctrl_c_stops_a_sweep_and_it_resumes_to_the_same_end(one_thread, capfd):
    train("digits", "--train.seed", "0", *TINY, "--out", "whole/seed=0")

    # Ctrl-C in a terminal reaches the whole group.
    out = Path("cut")
    process = start("vision.train", [*SEEDS, "--out", out], out=Path("said"), err=Path("errors"))
    wait_for_steps(out / "seed=0")
    os.killpg(process.pid, signal.SIGINT)
    process.join()
    said, errors = Path("said").read_text(), Path("errors").read_text()
    assert process.exitcode == 130 and "Traceback" not in errors, errors
    assert said.splitlines()[-1] == (
        "Stopped the sweep with 2 of 2 runs to go; go on with: python -m vision.train digits --out cut --resume"
    )
    assert list(out.glob("seed=0/checkpoints/step-*")) and not (out / "seed=1").exists()

    assert ended(*SEEDS, "--train.lr", "0.5", "--out", out, "--resume") == 1
    assert "cut/seed=0 has train.lr 0.001, not 0.5" in capfd.readouterr().err
    train("digits", "--out", out, "--resume")
    said = capfd.readouterr().out
    found = results(out)
    assert found.keys() == {"seed=0", "seed=1"} and found["seed=0"] != found["seed=1"]
    assert found["seed=0"] == results(Path("whole"))["seed=0"]
    assert "[2/2] seed=1" in said and "page: cut/compare.html" in said and (out / "compare.html").exists()


def test_a_signal_in_the_middle_of_imports_waits_for_the_command():
    """A run starts with signals held back, and lets them through where it can answer them."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)
    try:
        signal.pthread_kill(threading.get_ident(), signal.SIGINT)  # other threads here do not hold theirs back
        assert ended("digits") == 130
        assert not signal.pthread_sigmask(signal.SIG_BLOCK, ()) & set(STOPS)
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, set(STOPS))
        signal.signal(signal.SIGINT, before)
    assert not Path("runs").exists()
