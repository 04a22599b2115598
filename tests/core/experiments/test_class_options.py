"""Options of the loss of classes, on the command line."""

import json
from pathlib import Path

import pytest
from plain import train_plainly
from small_runs import TEXTS

from text.train import TEXT


@pytest.fixture(autouse=True)
def uneven(tmp_path, monkeypatch):
    """A manifest of 40 texts, a quarter of which are of one class."""
    monkeypatch.chdir(tmp_path)
    rows = [f"{'apple pear' if n % 4 else 'saw drill'} {n},{n % 4 > 0:d}" for n in range(40)]
    Path("list.csv").write_text("\n".join(["text,label", *rows]))


def train(*words):
    train_plainly(TEXT, ["manifest", "--data.path", "list.csv", "--out", "run", *TEXTS, *words])


@pytest.mark.parametrize("words", [("--train.class-balance", "sampling"), ("--train.class-balance", "weights")])
def test_they_change_the_run(words, capsys):
    losses = []
    for number, options in enumerate(([], [*words, "--train.class-loss", "bce"])):
        train(*options, "--out", f"run-{number}")
        rows = [json.loads(row) for row in Path(f"run-{number}/metrics.jsonl").read_text().splitlines()]
        losses.append(rows[0]["loss"])
    assert losses[0] != losses[1]


@pytest.mark.parametrize(
    "words, named",
    [(("--train.class-loss", "bce"), "loss"), (("--train.class-balance", "weights"), "balance")],
)
def test_they_are_refused_where_numbers_are_predicted(words, named, capsys):
    with pytest.raises(SystemExit) as end:
        train("--data.target", "number", *words)
    assert end.value.code == 1 and not Path("run").exists()
    assert f"--train.class-{named} has no effect where one class is not to be predicted" in capsys.readouterr().err
