"""Runs that are interrupted by signals or by their loading processes, and what they print."""

import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from processes import start
from runs import TINY, short_fit

from core import UserError
from core.files import read_json
from core.training.tracking import read_metrics

pytestmark = pytest.mark.usefixtures("elsewhere")


def wait_for(condition):
    until = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_to_the_whole_group_costs_no_step(images_of, number):
    """Loading processes get it too."""
    small = ["--model.image-size", "8", "--model.patch-size", "4", "--train.workers", "2", "--train.accumulate", "1"]
    words = ["folder", "--data.path", images_of("a", "b"), *TINY[1:], *small, "--out", "run"]
    words += ["--train.steps", "100000", "--train.save-every", "100000", "--train.eval-every", "100000"]
    run = start("vision.train", words, out=Path("said"))
    wait_for(lambda: Path("run/metrics.jsonl").exists() and len(read_metrics(Path("run"))) > 3)
    os.killpg(run.pid, number)
    run.join()
    said = Path("said").read_text()
    assert run.exitcode == 130 and "go on with: python -m vision.train folder --out run --resume" in said
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
            short_fit(tmp_path, workers=9)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        left = multiprocessing.active_children()
        for worker in left:  # which would keep the tests from ending
            worker.kill()
    assert not left


def test_nobody_need_read_what_a_run_says():
    """Its pipe is closed, or its log's disk is full: it is trained to its end."""
    command = [sys.executable, "-m", "vision.train", *TINY, "--train.steps", "6", "--out", "run"]
    run = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    run.stdout.close()
    run.stderr.close()
    assert run.wait() == 0 and read_json(Path("run/summary.json"))["steps"] == 6
    if (full := Path("/dev/full")).exists():
        run = start("vision.train", ["digits", "--resume", "--out", "run", "--train.steps", "7"], out=full, err=full)
        run.join()
        assert run.exitcode == 0 and read_json(Path("run/summary.json"))["steps"] == 7


def test_a_log_is_not_filled_with_a_bar():
    run = start("vision.train", [*TINY, "--train.steps", "30", "--out", "run"], out=Path("said"), err=Path("said"))
    run.join()
    said = Path("said").read_text()
    assert run.exitcode == 0 and "\r" not in said and len(said.splitlines()) < 6
