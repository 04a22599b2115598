"""What other trackers get of a run is what metrics.jsonl has; they are used without a network."""

import json
import os
import subprocess
import sys

import mlflow
import pytest

from core import UserError
from core.training import trackers
from core.training.tracking import read_metrics

from .test_loop import Stop, build, train


def settings_of(run):
    """config.json is written by the experiment; here it is given."""
    run.mkdir()
    (run / "config.json").write_text(json.dumps({"train": {"lr": 0.01, "steps": 23}, "tune": "full"}))


def test_mlflow_has_each_row_once_of_a_run_that_was_resumed(tmp_path, monkeypatch):
    store = (tmp_path / "store").as_uri()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow.set_tracking_uri(store)
    run = tmp_path / "run"
    settings_of(run)
    model = build()
    Stop(model, 13)
    assert not train(run, model, track=("mlflow",)).finished
    assert train(run, build(), resume=True, track=("mlflow",)).finished
    client = mlflow.MlflowClient(store)
    found = client.search_runs([client.get_experiment_by_name(trackers.PROJECT).experiment_id])
    assert len(found) == 1 and found[0].info.run_name == "run" and found[0].info.status == "FINISHED"
    assert found[0].data.params["train.lr"] == "0.01"
    rows = {row["step"]: row for row in read_metrics(run) if "loss" in row}
    history = client.get_metric_history(found[0].info.run_id, "loss")
    assert {point.step: point.value for point in history} == {step: row["loss"] for step, row in rows.items()}
    assert len(history) == len(rows) == 23


def test_wandb_keeps_the_metrics_offline(tmp_path):
    """In a process of its own, since wandb starts a service that outlives a test."""
    run = tmp_path / "run"
    code = (
        "from core.training import TrainConfig\nfrom tests.core.training.test_loop import train\n"
        "import pathlib, sys\ntrain(pathlib.Path(sys.argv[1]), track=('wandb',))"
    )
    environment = {**os.environ, "WANDB_MODE": "offline", "WANDB_SILENT": "true"}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    subprocess.run([sys.executable, "-c", code, run], env=environment, check=True, timeout=300)
    kept = [*run.glob("wandb/offline-run-*/*.wandb")]
    assert len(kept) == 1
    found = kept[0].read_bytes()
    assert b"grad_norm" in found and b"validation_loss" in found and found.count(b"grad_norm") >= 23


def test_a_tracker_that_fails_is_left_and_training_goes_on(tmp_path, monkeypatch):
    """A tracker whose server is down, and one that is lost in the middle."""

    class Down:
        def start(self):
            raise ConnectionError("no route to host")

    class Lost(Down):
        logged = 0

        def start(self):
            pass

        def log(self, values, step):
            Lost.logged += 1
            if step >= 10:
                raise TimeoutError("timed out")

    monkeypatch.setattr(trackers, "AVAILABLE", dict.fromkeys(trackers.AVAILABLE, lambda: True))
    monkeypatch.setattr(trackers, "MAKE", {"wandb": lambda *_: Down(), "trackio": lambda *_: Lost()})
    with pytest.warns(UserWarning) as warned:
        found = train(tmp_path / "run", track=("wandb", "trackio"))
    said = [str(warning.message) for warning in warned]
    assert "wandb cannot be reached: no route to host. Training goes on without it." in said
    assert "trackio cannot be reached: timed out. Training goes on without it." in said
    assert found.finished and Lost.logged == 10
    assert len([row for row in read_metrics(tmp_path / "run") if "loss" in row]) == 23


def test_a_tracker_that_is_not_installed_is_said_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(trackers, "AVAILABLE", dict.fromkeys(trackers.AVAILABLE, lambda: False))
    with pytest.raises(UserError, match="mlflow needs the package mlflow"):
        train(tmp_path / "run", track=("mlflow",))
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
