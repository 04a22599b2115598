"""Runs of a few steps by the training command."""

from pathlib import Path

import pytest
from plain import train_plainly
from points import Points, build, collate

from core import Classification
from core.training import Task, TrainConfig, fit
from vision.train import VISION

SMALLEST = ["--model.dim", "8", "--model.heads", "1", "--model.depth", "1"]
SMALLEST += ["--train.batch-size", "8", "--train.log-every", "1", "--train.device", "cpu"]
TINY = ["digits", *SMALLEST, "--train.warmup", "1", "--train.keep", "9", "--train.save-every", "3"]


def train(*words, modality=VISION):
    train_plainly(modality, words)


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


def short_fit(run, resume=False, model=None, **changes):
    plain = {"steps": 9, "batch_size": 12, "warmup": 1, "save_every": 3, "precision": "fp32", "device": "cpu"}
    config = TrainConfig(**{**plain, "workers": 0, "log_every": 1, "eval_every": 9, "keep": 9, **changes})
    task = Task(model or build(), Classification(), Points(), Points(12), collate)
    return fit(task, config, Path(run), resume=resume)
