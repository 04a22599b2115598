"""The model and the training that follow the user's texts."""

import json
from pathlib import Path

import pytest
from small_runs import TEXTS
from text_runs import train

from text import TextEncoder

pytestmark = pytest.mark.usefixtures("elsewhere", "without_figures")
FEW = ["--train.steps", "3", "--train.precision", "fp32", "--train.device", "cpu"]


def config(run="runs/manifest"):
    return json.loads((Path(run) / "config.json").read_text())


def test_a_run_follows_its_texts_and_says_so(listed, capsys):
    train("manifest", "--data.path", listed, *FEW)
    said = capsys.readouterr().out.splitlines()[0]
    assert said.startswith("Sized by 28 training texts, of ") and ": a tiny model (width 192, 2 layers, " in said
    model, training = config()["model"], config()["train"]
    assert 32 <= model["max_length"] <= 48 and model["encoder"]["rotary"] == "1d"
    assert (model["dropout"], model["encoder"]["dropout"]) == (0.5, 0.3)
    assert training["batch_size"] == 8 and training["warmup"] == 1
    assert sum(p.numel() for p in TextEncoder.from_run("runs/manifest").encoder.parameters()) < 3e6


def test_options_win(listed):
    train(
        "manifest", "--data.path", listed, *TEXTS, "--train.batch-size", "4", "--model.dropout", "0", "--size", "base"
    )
    model = config()["model"]
    assert (model["max_length"], model["encoder"]["dim"], model["dropout"]) == (24, 16, 0)
    assert config()["train"]["batch_size"] == 4 and config()["train"]["steps"] == 6


def test_masks_of_tokens_and_pairs_follow_as_well(listed, capsys):
    texts = [json.loads(line)["text"] for line in listed.read_text().splitlines()]
    Path("lines.txt").write_text("\n".join(texts))
    train("lines", "--data.path", "lines.txt", *FEW, "--model.depth", "1", "--out", "lines")
    assert config("lines")["model"]["dropout"] == 0.1 and config("lines")["train"]["batch_size"] == 8
    train("manifest", "--data.path", listed, *FEW, "--init", "lines", "--out", "tuned")
    assert "the model of lines (width 192, 1 layers, " in capsys.readouterr().out
    assert config("tuned")["train"]["lr"] < config("lines")["train"]["lr"]
    Path("pairs.csv").write_text("sentence1,sentence2\n" + "".join(f"{text},{text} too\n" for text in set(texts)))
    train("pairs", "--data.path", "pairs.csv", *FEW, "--model.depth", "1", "--out", "pairs")
    assert config("pairs")["model"]["encoder"]["dim"] == 192
