"""Pairs of texts: framed as transformers frames them, classified, and scored."""

import json
import random
from itertools import pairwise, permutations
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import pearsonr, spearmanr
from small_runs import TEXTS
from text_peers import make_peer
from text_runs import predicted, train
from text_tokenizers import MAKERS, odd_texts

from core import EncoderConfig, UserError
from core.objectives.regression import Regression
from text import TextConfig, TextEncoder
from text.datasets import HuggingFace, Manifest, collate, collate_padded
from text.pairs import PairFramer, framed_inputs
from text.pretrained import load_pretrained
from text.tokenizer import Tokenizer

pytestmark = pytest.mark.usefixtures("elsewhere", "without_figures")

NAMES = ["ann", "bob", "cat", "dan", "eve", "fay", "gus", "hal", "ida", "jim"]
VERBS = ["call", "help", "heed", "lead", "join"]


def save_stock(family, **changes):
    """A peer and its tokenizer in the directory `stock`."""
    tokenizer = MAKERS[family]()
    sizes = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}
    peer = make_peer(family, "ForSequenceClassification", **sizes, **changes)
    peer.save_pretrained("stock")
    tokenizer.save_pretrained("stock")
    return peer, tokenizer


@pytest.mark.parametrize("most", [400, 38, 11])
@pytest.mark.parametrize("family", MAKERS)
def test_pairs_are_framed_and_cut_as_in_transformers(family, most):
    stock = MAKERS[family]()
    tokenizer = Tokenizer(MAKERS[family]().backend_tokenizer, extend=False)
    texts = [text for text in odd_texts(80, seed=5) if all(tokenizer.encode([text]))]
    frame, has_segments = PairFramer(tokenizer), family in ("Bert", "Albert")
    for first, second in pairwise(texts):
        expected = stock(first, second, truncation="longest_first", max_length=most, return_token_type_ids=True)
        pair = frame(*tokenizer.encode([first, second]), most)
        assert pair.ids == expected["input_ids"]
        if has_segments:
            assert pair.segments == expected["token_type_ids"]


@pytest.mark.parametrize("family", MAKERS)
def test_logits_of_pairs_equal_transformers(family):
    peer, tokenizer = save_stock(family, num_labels=3)
    model, own = load_pretrained("stock")
    texts = [["abc", "de f g"], ["a", "hi jk lm no"], ["b c d e f", "g"]]
    inputs = tokenizer(
        *zip(*texts, strict=True), padding=True, return_tensors="pt", return_token_type_ids=model.config.segments > 1
    )
    with torch.no_grad():
        expected = peer(**inputs).logits
        for pair, row in zip(texts, expected, strict=True):
            found, _ = framed_inputs(model.config, own, own.encode(pair))
            assert (model(*found)[0] - row).abs().max() <= 1e-5 * expected.abs().max()


def premises(count):
    """Whether two texts say the same, which their words do not tell, only the order of them in both."""
    rows = []
    for first, second in permutations(NAMES, 2):
        for verb in VERBS:
            rows.append((f"{first} {verb}s {second}", f"so {second} is {verb}ed by {first}", "same"))
            rows.append((f"{first} {verb}s {second}", f"so {first} is {verb}ed by {second}", "other"))
    return random.Random(0).sample(rows, count)


def write_table(path, header, rows):
    Path(path).write_text("\n".join(",".join(map(str, row)) for row in (header, *rows)) + "\n")


PAIRS = ["--data.path", "pairs.csv", "--data.columns", "premise", "hypothesis"]
LEARN = ["--train.lr", "3e-3", "--train.batch-size", "32", "--train.eval-every", "400", "--model.dim", "32"]


PLAIN = ["--model.depth", "2", "--model.dropout", "0", "--model.head-dropout", "0", "--model.encoder.dropout", "0"]


@pytest.mark.usefixtures("as_in_production")
def test_pairs_are_classified_from_nothing(capsys, monkeypatch):
    write_table("pairs.csv", ("premise", "hypothesis", "label"), premises(900))
    train("manifest", *PAIRS, *TEXTS[2:], *LEARN, "--train.steps", "400", *PLAIN)
    summary = json.loads(Path("runs/manifest/summary.json").read_text())
    assert summary["metrics"]["accuracy"] > 0.75
    assert summary["baseline"]["TF-IDF + logistic regression"] < 0.6
    config = json.loads(Path("runs/manifest/model/config.json").read_text())
    assert config["segments"] == 2 and config["pairs"]
    texts = ["ann calls bob", "so bob is called by ann", "ann calls bob", "so ann is called by bob"]
    lines = predicted(capsys, monkeypatch, "runs/manifest", *texts, "--top", 1)
    assert len(lines) == 2 and lines[0].startswith("ann calls bob | so bob is called by ann: same ")
    assert ": other " in lines[1]
    assert len(Path("runs/manifest/samples.txt").read_text().splitlines()) % 2 == 0
    with pytest.raises(SystemExit):
        predicted(capsys, monkeypatch, "runs/manifest", *texts[:3])
    assert "takes pairs of texts, two by two, but there are 3 texts" in capsys.readouterr().err


@pytest.mark.parametrize("family", ["Bert", "Roberta"])
def test_pairs_start_from_a_stock_checkpoint(family, capsys, monkeypatch):
    save_stock(family)
    rows = [(a, b, round(draw, 2)) for (a, b, _), draw in zip(premises(60), np.linspace(0, 5, 60), strict=True)]
    write_table("pairs.csv", ("premise", "hypothesis", "label"), rows)
    options = ["--data.target", "number", "--init", "stock", "--train.steps", "4", "--train.batch-size", "8"]
    train("manifest", *PAIRS, *options, "--train.warmup", "1", "--train.eval-every", "4", "--out", "run")
    metrics = json.loads(Path("run/summary.json").read_text())["metrics"]
    assert {"pearson", "spearman"} <= {*metrics}
    (line,) = predicted(capsys, monkeypatch, "run", "ann likes bob", "ann is liked")
    assert line.startswith("ann likes bob | ann is liked: ")


@pytest.mark.usefixtures("as_in_production")
def test_how_alike_two_texts_are_is_told(capsys):
    draw = random.Random(1)
    rows = []
    for _ in range(900):
        first, shared = draw.sample(NAMES, 3), draw.randint(0, 3)
        second = [*first[:shared], *draw.sample(sorted({*NAMES} - {*first}), 3 - shared)]
        draw.shuffle(second)
        rows.append((" ".join(first), " ".join(second), 2.5 * shared))
    write_table("pairs.csv", ("premise", "hypothesis", "label"), rows)
    more = ["--data.target", "number", "--train.steps", "400", *PLAIN]
    train("manifest", *PAIRS, *TEXTS[2:], *LEARN, *more)
    metrics = json.loads(Path("runs/manifest/summary.json").read_text())["metrics"]
    assert metrics["pearson"] > 0.5 and metrics["spearman"] > 0.5


def test_correlations_are_those_of_scipy():
    generator = np.random.default_rng(0)
    targets = np.round(generator.normal(size=60), 1)
    predictions = targets + generator.normal(size=60)
    results = {"predictions": torch.tensor(predictions), "targets": torch.tensor(targets)}
    metrics = Regression().metrics(results)
    assert metrics["pearson"] == pytest.approx(pearsonr(predictions, targets)[0])
    assert metrics["spearman"] == pytest.approx(spearmanr(predictions, targets)[0])
    constant = Regression().metrics({**results, "predictions": torch.ones(60, dtype=torch.float64)})
    assert constant["pearson"] == constant["spearman"] == 0


def test_a_row_of_pairs_equals_a_padded_batch():
    rows = premises(40)
    write_table("pairs.csv", ("Premise", "hypothesis", "label"), rows)
    data = Manifest(path=Path("pairs.csv"), columns=("Premise ", "hypothesis")).read(20)
    config = TextConfig(vocab_size=data.tokenizer.size, segments=2, encoder=EncoderConfig(dim=32, depth=2, heads=2))
    model = TextEncoder(config).eval()
    samples = [data.train[i] for i in range(12)]
    with torch.no_grad():
        row, padded = (
            model(*batch.inputs) for batch in (collate(samples), collate_padded(samples, data.tokenizer.pad))
        )
        without = model(*collate(samples, segments=False).inputs)
    torch.testing.assert_close(row, padded, rtol=1e-5, atol=1e-6)
    assert (row - without).abs().max() > 1e-3


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: Manifest(columns=("a", "b", "c")), "--data.columns names the column of the texts, .*, not 3"),
        (lambda: Manifest(columns=("a", "b"), target="tokens"), "Masked tokens are learnt from single texts"),
        (lambda: HuggingFace(fields=("label",)), "--data.fields names one or two columns of texts, then labels, not 0"),
        (lambda: Manifest(path=Path("pairs.csv"), columns=("text", "more")).corpus(), "no column 'text'"),
        (lambda: Manifest(path=Path("empty.csv"), columns=("a", "b")).corpus(), "row 1 has no 'b'"),
        (
            lambda: Manifest(path=Path("pairs.csv"), columns=("a", "b"), overlong="error").read(6),
            "8 tokens, but the model takes 6: shorten the texts",
        ),
    ],
)
def test_mistakes(make, words):
    write_table("pairs.csv", ("a", "b", "label"), [("one two three", "four five", n % 2) for n in range(12)])
    write_table("empty.csv", ("a", "b", "label"), [("one", "", 1)])
    with pytest.raises(UserError, match=words):
        make()
