"""The embedded experiment learns: held-out accuracy of a short run, beside its baseline."""

import json
from pathlib import Path

import pytest

from core.experiments import train_command
from vision.train import VISION


@pytest.mark.usefixtures("as_in_production", "without_figures")
def test_digits_learn(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    train_command(VISION, ["digits", "--train.steps", "250", "--train.eval-every", "250", "--train.seed", "1"])
    summary = json.loads(Path("runs/digits/summary.json").read_text())
    assert summary["metrics"]["accuracy"] >= 0.93
    assert 0.98 <= summary["baseline"]["RBF-SVM"] <= 1
    assert len(list(Path("runs/digits/samples").iterdir())) >= 10
    said = capsys.readouterr().out
    assert f"accuracy {summary['metrics']['accuracy']:.2%} (95 % interval" in said and "; RBF-SVM: " in said
