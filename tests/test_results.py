"""The tables of results made from end to end, on a few made-up sentences and for a few steps, each command once."""

import io
import json
from contextlib import redirect_stdout
from dataclasses import replace

import pytest

from benchmarks.results import __main__ as command
from benchmarks.results.figures import accuracy, budget
from benchmarks.results.listops import ListOps
from benchmarks.results.sst2 import Sst2
from benchmarks.transfer.commands import Commands, words_of
from core.experiments import train_command
from text.train import TEXT

pytestmark = pytest.mark.usefixtures("without_figures")

SHORT = {"train.steps": 2, "train.batch-size": 8, "train.warmup": 1, "train.device": "cpu", "train.precision": "fp32"}
SMALL = {"model.dim": 16, "model.heads": 2, "model.depth": 1}


@pytest.fixture
def study(tmp_path, monkeypatch):
    """Makes a table and returns its rows and the commands."""
    monkeypatch.setattr("core.experiments.experiment.write_run_report", lambda *_: None)  # half of a short run's time
    (tmp_path / "sst2").mkdir()
    rows = [
        f"{word} film {n},{label},{split}"
        for word, label in (("good", "positive"), ("bad", "negative"))
        for split, count in (("train", 12), ("test", 4))
        for n in range(count)
    ]
    (tmp_path / "sst2" / "sst2.csv").write_text("\n".join(["text,label,split", *rows]))

    def called(words):
        said = io.StringIO()
        with redirect_stdout(said):
            train_command(TEXT, list(words[1:]))
        return said.getvalue()

    def run(changed):
        commands = Commands(tmp_path / "out", call=called)
        found = changed.run(commands, tmp_path / "sst2", (0,))
        parts = [
            [part.strip() for part in line.strip("|").split("|")] for line in found.splitlines() if line[0:1] == "|"
        ]
        return {row[0]: row[1:] for row in parts[2:]}, commands

    return run


def summary_of(commands, name):
    return json.loads((commands.out / name / "summary.json").read_text())


def test_sst2(study, tmp_path):
    table, teacher, start = tmp_path / "sst2" / "sst2.csv", tmp_path / "teacher", Sst2()
    train_command(TEXT, ["lines", *words_of({"data.path": table, "out": teacher, "size": None, **SMALL, **SHORT})])
    scratch = {**start.ways["random weights"], **SMALL, **SHORT}
    tokens = {**start.tokens, **SMALL, **SHORT, "distill.teacher": teacher}
    rows, commands = study(replace(start, ways={"random weights": scratch}, tokens=tokens, student=SHORT))
    names = ["random weights", "tokens of a teacher first"]
    assert list(rows) == [*names, "these tokens", "TF-IDF + logistic regression"]
    for name in names:
        assert rows[name][0] == accuracy([summary_of(commands, f"{name.replace(' ', '-')}-0")])
    assert rows["these tokens"][0] == f"loss {summary_of(commands, 'tokens')['metrics']['loss']:.3f}"
    assert rows["TF-IDF + logistic regression"][0] == "100.0%"


def test_listops(study):
    small = {"data.samples": 30, "data.held-out": 10, "data.longer-than": 10, "data.shorter-than": 60}
    rows, commands = study(ListOps(options={**small, **SHORT, **SMALL}))
    starts = ("from random weights", "masked tokens first", "then the values")
    ways = [f"{way}, {start}" for way in ("dense", "sparse") for start in starts]
    assert list(rows) == ways and all(cells[0] for cells in rows.values())
    for way, patterns in (("dense", None), ("sparse", "PowersOfTwo()|Local(256)|Global(1)")):
        for name in (f"{way}-random-0", f"{way}-tuned-0"):
            config = json.loads((commands.out / name / "config.json").read_text())
            own = config["model"]["encoder"]["patterns"]
            assert own == patterns or own.replace(" ", "") == patterns
        assert config["init"].endswith(f"{way}-masked-0")
        loss = summary_of(commands, f"{way}-masked-0")["metrics"]["loss"]
        assert rows[f"{way}, masked tokens first"][0] == f"loss {loss:.3f}"


def test_cells_have_medians_and_every_seed():
    runs = [
        {"metrics": {"accuracy": a}, "train_seconds": seconds, "pflop": pflop, "parameters": 1.2e6}
        for a, seconds, pflop in ((0.5, 60, 1.0), (0.75, 90, 0.25), (0.7, 240, 3.0))
    ]
    assert accuracy(runs) == "70.0% (50.0, 75.0, 70.0)"
    assert budget(runs) == "1.5 min, 1 PFLOP, 1.2 M parameters"


def test_what_is_missing_is_said_in_a_sentence(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        command.main(["sst2", *words_of({"data": "nowhere", "cache": "cache"})])
    assert str(end.value.code).startswith("error: There is no nowhere/sst2.zip")
    with pytest.raises(SystemExit):
        command.main(["glue"])
    assert "error: There is no 'glue': choose from cifar10; spoken-digits; sst2; listops." in capsys.readouterr().err
