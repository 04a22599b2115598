"""Progress fits the terminal that it is shown on, and is a few lines where there is none."""

import fcntl
import os
import struct
import termios
import threading
from contextlib import suppress

import pytest
from processes import start
from runs import TINY

from core.training import progress
from core.training.progress import Progress


def on_terminal(columns, monkeypatch, name, steps=50):
    """What a terminal of so many columns is sent, redraw by redraw."""
    master, slave = os.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    sent = []

    def read():
        with suppress(OSError):  # until the other end is closed
            while part := os.read(master, 2**16):
                sent.append(part)

    reader = threading.Thread(target=read)
    reader.start()
    with os.fdopen(slave, "w") as terminal:
        monkeypatch.setattr("sys.stderr", terminal)
        shown = Progress(name, steps, "step")
        shown.bar.mininterval = 0
        for number in range(steps):
            shown.advance(loss=f"{number:.4f}", lr="1.0e-03")
        shown.close()
    reader.join()
    os.close(master)
    return b"".join(sent).decode().rstrip().split("\r")


@pytest.mark.parametrize("columns", [7, 20, 40, 60, 80, 200])
@pytest.mark.parametrize("name", ["digits", "a-run-with-a-name-of-its-own-" * 3])
def test_a_bar_never_exceeds_its_terminal(columns, name, monkeypatch):
    redraws = on_terminal(columns, monkeypatch, name)
    assert len(redraws) >= 50 and max(map(len, redraws)) <= columns
    last = [redraw for redraw in redraws if redraw.strip()][-1]
    assert "50/50" in last
    assert columns < 80 or "loss=49.0000" in last
    assert (name in last) == (columns == 200 or (columns == 80 and name == "digits"))


def test_a_terminal_of_unknown_width(monkeypatch):
    assert max(map(len, on_terminal(0, monkeypatch, "digits"))) <= progress.USUAL_WIDTH


def test_an_hour_of_steps_is_a_line_a_minute(monkeypatch, capsys):
    """On a clock of its own: 64 steps a second."""
    now = 0.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    shown = Progress("long", 3600 * 64, "step")
    for _ in range(3600 * 64):
        now += 1 / 64
        shown.advance(loss="0.5000")
    shown.close()
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 5 + 59  # the first minute has five
    assert lines[0] == "long: step 640 of 230400: loss 0.5000, 64.0 steps/s, 59:50 left"


def test_slow_steps_have_seconds_each(monkeypatch, capsys):
    now = 0.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    shown = Progress("slow", 10, "step", first=4)
    now = 20.0
    shown.advance()
    assert capsys.readouterr().err == "slow: step 5 of 10: 20.0 s/step, 01:40 left\n"
    now += 20.0
    quiet = Progress("slow", 10, "step", quiet=True)
    now += 100.0
    quiet.advance()
    quiet.say("said all the same")
    said = capsys.readouterr()
    assert said.err == "" and said.out == "said all the same\n"


@pytest.mark.parametrize("quiet", [False, True])
def test_a_run_logs_few_lines(quiet, tmp_path):
    words = [*TINY, "--train.steps", "120", "--train.eval-every", "40", "--train.save-every", "120", "--out", "run"]
    run = start(
        "vision.train", [*words, *(["--quiet"] if quiet else [])], tmp_path, out=tmp_path / "out", err=tmp_path / "log"
    )
    run.join()
    assert run.exitcode == 0
    out, said = (tmp_path / "out").read_text(), (tmp_path / "log").read_text()
    assert said.count("\n") < 60 and "\r" not in said
    assert out.count("validation") == (0 if quiet else 3) and out.splitlines()[-1].startswith("digits: test accuracy")
    if quiet:
        assert said == "" and out.count("\n") == 1
