"""Runs of every modality, killed at random moments, end as if nothing had happened."""

import json
import random
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
from killed import run_once
from processes import SERVER
from safetensors.torch import load_file

from core.training.throughput import TIMED

STEPS, KILLS = 32, 5
TRAIN = [f"--train.steps={STEPS}", "--train.save-every=2", "--train.eval-every=8", "--train.log-every=1"]
TRAIN += ["--train.batch-size=8", "--train.accumulate=2", "--train.keep=1", "--train.ema=0.9", "--train.device=cpu"]
SMALL = ["--model.dim=32", "--model.heads=2", "--model.depth=2", "--model.dropout=0.1"]


def vision(folder: Path) -> list[str]:
    return ["digits", *SMALL]


def audio(folder: Path) -> list[str]:
    """Tones of two heights, in files."""
    rows = ["path,label,split"]
    for number in range(24):
        seconds = np.arange(int(16_000 * (0.3 + 0.02 * number))) / 16_000
        soundfile.write(folder / f"{number}.wav", 0.1 * np.sin(2 * np.pi * (400, 900)[number % 2] * seconds), 16_000)
        rows.append(f"{number}.wav,{('low', 'high')[number % 2]},{'test' if number > 17 else 'train'}")
    (folder / "list.csv").write_text("\n".join(rows))
    return ["manifest", f"--data.path={folder / 'list.csv'}", *SMALL]


def text(folder: Path) -> list[str]:
    words = random.Random(0)
    rows = ["text,label,split"]
    for number in range(60):
        body = " ".join(words.choice(("cat dog cow", "one two six")[number % 2].split()) for _ in range(3 + number % 9))
        rows.append(f"{body},{('animal', 'number')[number % 2]},{'test' if number > 45 else 'train'}")
    (folder / "list.csv").write_text("\n".join(rows))
    return ["manifest", f"--data.path={folder / 'list.csv'}", "--data.tokenizer.vocab-size=300", *SMALL]


def newest(out: Path) -> int:
    """The step of the newest checkpoint."""
    return max((int(path.name.removeprefix("step-")) for path in out.glob("checkpoints/step-*")), default=0)


def ended(out: Path) -> tuple[dict, list[dict]]:
    """The last weights, and every logged figure that is not a time."""
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    weights = load_file(out / "checkpoints" / f"step-{STEPS:08d}" / "model.safetensors")
    return weights, [{key: row[key] for key in row if key not in TIMED} for row in rows]


@pytest.mark.parametrize("make", [vision, audio, text], ids=lambda make: make.__name__)
def test_killed_runs_end_the_same(tmp_path, make):
    arguments = [*make(tmp_path), *TRAIN]

    def start(out: Path):
        process = SERVER.Process(target=run_once, args=(make.__name__, arguments, out))
        process.start()
        return process

    whole = start(tmp_path / "whole")
    whole.join()
    assert whole.exitcode == 0

    moments, kills, out = random.Random(1), 0, tmp_path / "killed"
    while True:
        process, before = start(out), newest(out)
        if kills < KILLS:
            # Behind the first or second new checkpoint: somewhere in a step, or while the next one is being written.
            ahead = moments.choice((1, 2))
            while process.is_alive() and newest(out) < before + 2 * ahead:
                time.sleep(0.001)
            until = time.perf_counter() + moments.uniform(0, 0.1)
            while kills % 2 and process.is_alive() and not list(out.glob("checkpoints/.partial-*")):
                pass
            while not kills % 2 and time.perf_counter() < until:
                pass
            process.kill()
            kills += 1
        process.join()
        if process.exitcode == 0:
            break
        assert process.exitcode == -9
    assert kills == KILLS
    (weights, rows), (expected, expected_rows) = ended(out), ended(tmp_path / "whole")
    assert all((weights[name] == expected[name]).all() for name in expected) and weights.keys() == expected.keys()
    assert rows == expected_rows
