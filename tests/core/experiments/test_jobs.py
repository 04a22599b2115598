"""Several runs at once: on this machine, and by submitit; they share it, are stopped together and go on."""

import json
import os
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from processes import start
from runs import SMALLEST

from core import UserError
from core.experiments import jobs, train_command
from core.experiments.jobs import Places
from core.experiments.sweep import run_sweep
from core.experiments.words import read_options
from core.training.tracking import read_metrics
from vision.train import VISION

TINY = [*SMALLEST, "--train.steps", "60", "--train.eval-every", "30", "--train.warmup", "2", "--quiet"]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # in the runs


TOGETHER = """
import json, os, pathlib, signal, sys, time
given = dict(zip(sys.argv, sys.argv[1:]))
out, seed = pathlib.Path(given["--out"]), given["--train.seed"]
print("seed", seed, flush=True)
cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
(out / "seen").write_text(json.dumps([os.environ.get("CUDA_VISIBLE_DEVICES"), cores]))
if pathlib.Path("ended").exists():
    (out / "summary.json").write_text('{"metrics": {"accuracy": 0.5}}')
    sys.exit(3 if seed == "9" else 0)
for number in signal.SIGTERM, signal.SIGINT:
    signal.signal(number, lambda *_: sys.exit((out / "saved").touch() or 130))
signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM, signal.SIGINT])
(out / "waiting").touch()
time.sleep(60)
"""


def sweep(*words):
    """Of a command that waits, until there is a file that ends it."""
    Path("together.py").write_text(TOGETHER)
    default = VISION.experiments[0]()

    def parse(given):
        return replace(default, train=replace(default.train, seed=int(given[-1])))

    run_sweep("together", "digits", words, default, parse)


def seen(seed):
    return json.loads(Path(f"s/seed={seed}/seen").read_text())


@pytest.mark.parametrize("way, number", [("--jobs 2", signal.SIGTERM), ("--slurm local --jobs 2", signal.SIGINT)])
def test_two_run_at_once_are_stopped_together_and_go_on(way, number, monkeypatch, capfd):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")

    def stop():
        while len(list(Path().glob("s/*/waiting"))) < 2:
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    threading.Thread(target=stop, daemon=True).start()
    with pytest.raises(SystemExit) as exit:
        sweep("--train.seed", "0", "1", "9", "--out", "s", *way.split())
    assert exit.value.code == 130 and "with 3 of 3 runs to go" in capfd.readouterr().out
    assert Path("s/seed=0/saved").exists() and Path("s/seed=1/saved").exists() and not Path("s/seed=9").exists()
    if "slurm" not in way:
        (gpu, cores), (other, others) = seen(0), seen(1)
        assert (gpu, other) == ("3", "5")
        assert not set(cores) & set(others) or len(set(cores) | set(others)) == 1
    Path("ended").touch()
    with pytest.raises(UserError, match=r"1 of 3 runs failed: seed=9 \(exit code 3\); their messages are in their log"):
        sweep("--out", "s", "--resume", *way.split())
    assert Path("s/seed=1/log.txt").read_text() == "seed 1\nseed 1\n"
    assert "seed=0: finished" in capfd.readouterr().out


def results(out):
    return {run.parent.name: json.loads(run.read_text())["metrics"] for run in sorted(out.glob("*/summary.json"))}


@pytest.mark.usefixtures("without_figures")
def test_submitit_runs_a_sweep_of_four_that_is_interrupted_and_goes_on_to_the_same_end(one_thread, capfd):
    longer = [*TINY, "--train.steps", "200", "--train.eval-every", "100"]
    train_command(VISION, ["digits", "--train.seed", "0", *longer, "--out", "whole/seed=0"])
    words = ["digits", "--train.seed", "0", "1", "2", "3", *longer, "--out", "cut", "--slurm", "local", "--jobs", "1"]
    process = start("vision.train", words, out=Path("said"), err=Path("errors"))
    while not read_metrics(Path("cut/seed=0")):
        assert process.is_alive(), Path("errors").read_text()
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)  # a terminal sends it to the whole group
    process.join()
    assert process.exitcode == 130 and "Traceback" not in Path("errors").read_text(), Path("errors").read_text()
    last = Path("said").read_text().splitlines()[-1]
    assert last == (
        "Stopped the sweep with 4 of 4 runs to go; go on with: python -m vision.train digits --out cut --resume"
    )
    assert list(Path("cut").glob("seed=0/checkpoints/step-*"))
    train_command(VISION, ["digits", "--out", "cut", "--resume", "--slurm", "local"])
    found = results(Path("cut"))
    assert found.keys() == {f"seed={seed}" for seed in range(4)} and found["seed=0"] == results(Path("whole"))["seed=0"]
    assert "page: cut/compare.html" in capfd.readouterr().out and Path("cut/compare.html").exists()
    assert all((Path("cut") / run / "log.txt").read_text() for run in found)


@pytest.mark.parametrize(
    "words, sentence",
    [
        ("--jobs", "--jobs must be a whole number of at least 1, not nothing"),
        ("--jobs 0", "--jobs must be a whole number of at least 1, not 0"),
        ("--jobs 1 2", "--jobs must be a whole number of at least 1, not 1 2"),
        ("--slurm", "--slurm nothing is not understood"),
        ("--slurm partition=gpu", "the minutes of a run among them, as in partition=gpu,time=240"),
        ("--slurm partition=gpu,time=4:00:00", "not understood"),
        ("--slurm partition=gpu,time=240", "there is no sbatch here"),
    ],
)
def test_a_mistake_gets_one_sentence(words, sentence, monkeypatch):
    monkeypatch.setattr(jobs.shutil, "which", lambda name: None)
    with pytest.raises(UserError, match=r"^--") as error:
        Places.of(read_options(words.split()))
    assert sentence in str(error.value)


def test_options_of_sbatch_are_handed_on(tmp_path, monkeypatch):
    """As submitit writes them into the file that sbatch is given."""
    monkeypatch.setattr(jobs.shutil, "which", lambda name: f"/usr/bin/{name}")
    places = Places.of(read_options(["--slurm", "partition=gpu,time=240,gres=gpu:1", "--jobs=3"]))
    assert places.most == 3 and places.slurm is not None
    executor = jobs._executor(places.slurm, tmp_path)._executor
    written = executor._make_submission_file_text("command", "id")
    for line in ("--partition=gpu", "--time=240", "--gres=gpu:1", "--signal=USR2@90"):
        assert f"#SBATCH {line}\n" in written


def test_one_run_is_not_several(capsys):
    with pytest.raises(SystemExit) as exit:
        train_command(VISION, ["digits", "--jobs", "2"])
    assert exit.value.code == 1
    assert "--jobs is for several runs: give an option several values, or --search." in capsys.readouterr().err
