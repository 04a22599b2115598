"""The table of spoken digits made from end to end, on a few made-up recordings and for a few steps."""

import json

import pytest
from spoken_samples import SPEAKERS, publish, table_of

from audio.train import AUDIO
from benchmarks.results.figures import accuracy, mean_accuracy
from benchmarks.results.small_cnn import SMALL, SmallCNN
from benchmarks.results.spoken_digits import OFFICIAL, SpokenDigits
from benchmarks.transfer.commands import Commands
from core.experiments import train_command

pytestmark = pytest.mark.usefixtures("without_figures")

SHORT = {
    "train.steps": 2,
    "train.batch-size": 8,
    "train.device": "cpu",
    "train.precision": "fp32",
    "train.workers": 0,
}


def called(words):
    few = ["--data.voices.count", "2"] if words[1] == "spoken-digits-voices" else []
    train_command({"audio.train": AUDIO, SMALL.name: SMALL}[words[0]], [*words[1:], *few])
    return ""


def test_the_table_of_spoken_digits(tmp_path, monkeypatch):
    monkeypatch.setattr("core.experiments.experiment.write_run_report", lambda *_: None)  # half of a short run's time
    listed = table_of(publish(tmp_path), name="spoken-digits.csv")
    commands = Commands(tmp_path / "out", call=called)
    found = SpokenDigits(options=SHORT).run(commands, listed.parent, (0,))
    rows = {line.split(" | ")[0].strip("| "): line for line in found.splitlines()[2:]}
    assert list(rows) == [
        OFFICIAL,
        *(f"{name}, held out" for name in SPEAKERS),
        "mean of the held-out speakers",
        "a run",
    ]
    for kind in ("ast", "voices", "cnn"):
        runs = {
            name: json.loads((tmp_path / "out" / f"{kind}-{name}-0" / "summary.json").read_text()) for name in SPEAKERS
        }
        assert all(accuracy([run]) in rows[f"{name}, held out"] for name, run in runs.items())
        assert all(
            run["test_samples"] == 70 and f"of {name} are the test" in run["splits"] for name, run in runs.items()
        )
        assert mean_accuracy([[run] for run in runs.values()]) in rows["mean of the held-out speakers"]
    assert SmallCNN.from_pretrained(tmp_path / "out" / "cnn-official-0" / "model").config.classes == 10


def test_the_mean_is_of_the_medians_of_the_speakers():
    runs = [[{"metrics": {"accuracy": each}} for each in seeds] for seeds in ((0.1, 0.2, 0.9), (0.4, 0.6, 0.5))]
    assert mean_accuracy(runs) == "35.0% (25.0, 40.0, 70.0)"
    assert accuracy(runs[0]) == "20.0% (10.0, 20.0, 90.0)"
