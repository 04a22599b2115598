"""The training command: it works, and can be resumed."""

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from small_runs import CLASSIFIER_RUN, LONGER, TEXTS
from text_runs import predicted, train

from core import EncoderConfig, UserError
from core.models.targets import standardised
from core.models.tuning import initial_config
from text import TextConfig, TextEncoder
from text.datasets import Manifest
from text.pretrained import load_pretrained
from text.tokenizer import TokenizerConfig, train_tokenizer
from text.train import OWN, TextExperiment, make_task

pytestmark = pytest.mark.usefixtures("elsewhere")


def test_manifest_run_leaves_a_whole_run_and_predicts(listed, capsys, monkeypatch):
    train("manifest", "--data.path", listed, *LONGER)
    run = Path("runs/manifest")
    assert "TF-IDF + logistic regression: 100.00%" in capsys.readouterr().out
    names = {*CLASSIFIER_RUN, "samples.json", "tokenizer.json"}
    assert {path.name for path in run.iterdir()} == names | {"samples.txt"}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {path.name for path in (run / "model").iterdir()}
    summary = json.loads((run / "summary.json").read_text())
    assert summary["metrics"]["accuracy"] >= 0.9 and summary["steps"] == 60
    page = (run / "report.html").read_text()
    assert (
        page.count("<svg") == 3
        and "background: rgba(" in page
        and "http://" not in page.replace("http://www.w3.org", "")
    )

    lines = predicted(
        capsys, monkeypatch, run, "the apple and the plum", "the saw and the file", "--top", 1, "--plots=plots"
    )
    assert ": fruit " in lines[0] and ": tools " in lines[1] and "%" in lines[0]
    assert sorted(path.name for path in Path("plots").iterdir()) == ["text-1.png", "text-2.png"]
    piped = predicted(capsys, monkeypatch, run, "--top", 1, stdin=b"the apple and the plum\nthe saw and the file\n")
    Path("tools.txt").write_text("the saw\nand the file")
    piped += predicted(capsys, monkeypatch, run, "--top", 1, "tools.txt", "the pear", "--plots=plots")[:1]
    said = [line.partition(": ")[2].partition(" (")[0] for line in [*lines, lines[1]]]
    assert [line.partition(": ")[2].partition(" (")[0] for line in piped] == said and piped[2].startswith("tools.txt: ")
    made = {"text-1.png", "text-2.png", "text-2-2.png", "tools.png"}  # none took another's place
    assert {path.name for path in Path("plots").iterdir()} == made
    with pytest.raises(SystemExit):
        predicted(capsys, monkeypatch, run, "none.txt")
    assert capsys.readouterr().err == "error: There is no text file none.txt.\n"

    vectors = [json.loads(line) for line in predicted(capsys, monkeypatch, run, "--embed", "the pear", "the saw")]
    assert [row["text"] for row in vectors] == ["the pear", "the saw"]
    assert abs(np.linalg.norm(vectors[0]["vector"]) - 1) < 1e-4
    alone = json.loads(predicted(capsys, monkeypatch, run, "--embed", "the pear")[0])
    np.testing.assert_allclose(alone["vector"], vectors[0]["vector"], atol=1e-5)


def test_lines_start_a_manifest_by_init_and_fill_in_words(listed, capsys, monkeypatch):
    texts = [json.loads(line)["text"] for line in listed.read_text().splitlines()]
    Path("lines.txt").write_text("\n".join(texts))
    more = ["--train.steps", "200", "--train.lr", "1e-2", "--model.heads", "2", "--model.encoder.dropout", "0"]
    train("lines", "--data.path", "lines.txt", *TEXTS[2:], *more, "--out", "lines")
    assert "unigram entropy" in capsys.readouterr().out
    summary = json.loads(Path("lines/summary.json").read_text())
    assert summary["metrics"]["loss"] < summary["baseline"]["unigram entropy"]
    assert "Masked tokens" in Path("lines/report.html").read_text()
    (line,) = predicted(capsys, monkeypatch, "lines", "[MASK] apple and the [MASK]", "--top", 2)
    assert line.startswith("[MASK] apple and the [MASK]: the ") and line.count("%") == 4 and line.count(";") == 1

    train("manifest", "--data.path", listed, *TEXTS, "--init", "lines", "--out", "started")
    started, tokenizer = load_pretrained("started")
    assert started.config.encoder.dim == 16  # the shape is that of the weights
    assert tokenizer.encode(texts) == load_pretrained("lines")[1].encode(texts)
    assert started.config.head == "classes" and started.config.labels == ("fruit", "tools")


def test_init_takes_over_embedding_and_encoder(listed):
    encoder = EncoderConfig(dim=16, depth=1, heads=2, dropout=0.3)
    texts = [json.loads(line)["text"] for line in listed.read_text().splitlines()]
    tokenizer = train_tokenizer(texts, TokenizerConfig())
    config = TextConfig(vocab_size=tokenizer.size, max_length=20, head="tokens", encoder=encoder)
    start = TextEncoder(config)
    start.save_pretrained("start")
    tokenizer.save(Path("start/tokenizer.json"))
    wanted = TextConfig(pool="mean", encoder=EncoderConfig(dim=64, dropout=0.1))
    task = make_task(TextExperiment(data=Manifest(path=listed), model=wanted, init="start"))
    state = task.model.state_dict()
    for key, tensor in start.state_dict().items():
        if not key.startswith("head."):
            assert torch.equal(state[key], tensor), key
    adopted = initial_config(config, wanted, OWN)
    assert adopted.pool == "mean" and adopted.encoder.dropout == 0.1 and adopted.encoder.dim == 16


def test_a_number_is_told(capsys, monkeypatch):
    rows = [(" ".join(["more"] * n + ["less"] * (8 - n)), 100 + 10 * n) for n in range(9) for _ in range(4)]
    Path("list.csv").write_text("text,label\n" + "".join(f"{text},{number}\n" for text, number in rows))
    options = ["--data.target", "number", "--train.steps", "150", "--train.lr", "3e-3", *TEXTS[2:]]
    train("manifest", "--data.path", "list.csv", *options, "--train.eval-every", "150")
    summary = json.loads(Path("runs/manifest/summary.json").read_text())
    assert summary["metrics"]["r2"] > 0.8
    low, high = predicted(capsys, monkeypatch, "runs/manifest", rows[0][0], rows[-1][0])
    low, high = (float(re.search(r": ([\d.]+)$", line)[1]) for line in (low, high))
    assert 90 < low < 125 and 155 < high < 190


def test_numbers_that_cannot_be_learnt():
    with pytest.raises(UserError, match=r"The labels reach 3e\+200; those to be learnt must not exceed 1e\+100"):
        standardised([1e200, -3e200])


@pytest.mark.parametrize("numbers", [[0.3, 0.1 + 0.2], [1e-300, 2e-300, 3e-300], [-7.0, -7.0, 7.0]])
def test_standardised_numbers_are_finite(numbers):
    mean, std = standardised(numbers)
    assert TextConfig(classes=1, target_mean=mean, target_std=std)
    assert np.abs((np.array(numbers) - mean) / std).max() < 2


@pytest.mark.parametrize("power", [-300, -170, 0, 99])
def test_numbers_of_any_size_are_standardised(power):
    mean, std = standardised([1 * 10.0**power, 2 * 10.0**power, 3 * 10.0**power])
    assert (mean, std) == pytest.approx((2 * 10.0**power, (2 / 3) ** 0.5 * 10.0**power), rel=1e-9, abs=0)


def test_texts_without_words_have_a_baseline_too(capsys):
    Path("list.csv").write_text("text,label\n" + "! ? a,x\n: ; b,y\n" * 4)
    train("manifest", "--data.path", "list.csv", *TEXTS)
    assert "TF-IDF + logistic regression: 100.00%" in capsys.readouterr().out


def test_resuming_by_command_goes_on_with_the_runs_own_settings(listed):
    train("manifest", "--data.path", listed, *TEXTS, "--out", "here")
    train("manifest", "--out", "here", "--resume", "--train.steps", "9")
    config = json.loads(Path("here/config.json").read_text())
    assert config["train"]["steps"] == 9 and config["model"]["encoder"]["dim"] == 16
    assert json.loads(Path("here/summary.json").read_text())["steps"] == 9


def test_hugging_face_data_need_their_package(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(SystemExit):
        train("huggingface", "--data.dataset", "some/data")
    assert "need the package `datasets`: pip install datasets" in capsys.readouterr().err


def test_a_tokenizer_with_more_words_than_the_model():
    tokenizer = train_tokenizer(["one two three"] * 2, TokenizerConfig())
    encoder = EncoderConfig(dim=8, depth=1, heads=1)
    TextEncoder(TextConfig(vocab_size=tokenizer.size - 1, encoder=encoder)).save_pretrained("run")
    tokenizer.save(Path("run/tokenizer.json"))
    with pytest.raises(
        UserError, match=f"the tokenizer has {tokenizer.size} tokens, but the model {tokenizer.size - 1}"
    ):
        load_pretrained("run")


@pytest.mark.parametrize(
    "argv, stdin, words",
    [
        (["nowhere", "a"], b"", "nowhere holds no trained model"),
        (["run"], b"", "Name at least one text"),
        (["run"], None, "Name at least one text"),  # closed
        (["run"], b"one\n\xff\n", "Standard input is not utf-8 text (byte 4)"),
        (["run"], b"one\n\ntwo\n", "Text 2 is empty"),
        (["run", "one", " "], b"", "Text 2 is empty"),
        (["run", "one", "one two three " * 3], b"", "Text 2 has 11 tokens, but the model takes 8"),
        (["run", "one", "--top", "0"], b"", "--top must be at least 1"),
        (["words", "one [MASK]", "one two"], b"", "Text 2 has no [MASK]"),
        (["features", "one", "--top", "1"], b"", "--top has no effect where no classes and no tokens are predicted"),
        (["run", "one", "--plots", "plots", "--embed"], b"", "--plots has no effect where no classes are predicted"),
        (["answers", "one"], b"", "answers answers questions: give each question and its context, not 1 texts"),
        (["run", "one", "two", "three", "--pairs"], b"", "run takes pairs of texts, two by two, but there are 3 texts"),
        (["words", "one", "two", "--pairs"], b"", "--pairs has no effect where no classes are predicted for pairs"),
    ],
)
def test_predicting_from_bad_input(argv, stdin, words, capsys, monkeypatch):
    tokenizer = train_tokenizer(["one two three"] * 2, TokenizerConfig())
    for name, head in (("run", "classes"), ("words", "tokens"), ("features", "none"), ("answers", "spans")):
        encoder = EncoderConfig(dim=8, depth=1, heads=1)
        config = TextConfig(vocab_size=tokenizer.size, max_length=8, head=head, encoder=encoder)
        TextEncoder(config).save_pretrained(name)
        tokenizer.save(Path(name) / "tokenizer.json")
    with pytest.raises(SystemExit) as exit:
        predicted(capsys, monkeypatch, *argv, stdin=stdin)
    captured = capsys.readouterr()
    assert exit.value.code == 1 and captured.out.count(": error: ") <= captured.out.count("\n")
    assert captured.err.startswith("error: ") and words in captured.err and captured.err.count("\n") == 1
    if captured.out:  # a row for each text, and the reason in the row of the bad one
        assert words in captured.out and ": error: " in captured.out
