"""Sentence vectors from pairs: in-batch negatives, scores, shortened vectors."""

import copy
import json
import random
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from small_runs import SHORT, TEXTS
from text_runs import predicted, train

from core import EncoderConfig, UserError
from core.data.splits import connected
from core.training.gradients import step_gradients
from text import TextConfig, TextEncoder
from text.pair_data import Pairs, collate_pairs
from text.pairing import PairContrastive, PairEncoder, PairScores, shortened

pytestmark = pytest.mark.usefixtures("elsewhere", "without_figures")

WHO = [("cat", "kitten"), ("dog", "hound"), ("horse", "mare"), ("cow", "bull"), ("hen", "rooster"), ("pig", "sow")]
DOES = [("sleeps", "naps"), ("runs", "races"), ("eats", "feeds"), ("sings", "hums"), ("hides", "lurks")]
PLACES = [("house", "home"), ("wood", "forest"), ("road", "street"), ("hill", "mountain")]


def paraphrases():
    """Each thing in two ways that share no word."""
    return [
        (f"{who[0]} {does[0]} {place[0]}", f"{place[1]} where {who[1]} {does[1]}")
        for who, does, place in product(WHO, DOES, PLACES)
    ]


def write(rows, header="sentence1,sentence2"):
    Path("pairs.csv").write_text("\n".join([header, *(",".join(map(str, row)) for row in rows)]) + "\n")


LEARN = ["--train.lr", "5e-3", "--train.batch-size", "24", "--train.eval-every", "150", "--model.dim", "32"]
LEARN += ["--train.steps", "150", "--model.dropout", "0", "--model.encoder.dropout", "0"]


@pytest.mark.usefixtures("as_in_production")
def test_paraphrases_without_a_common_word_are_found(capsys, monkeypatch):
    write(paraphrases())
    train("pairs", "--data.path", "pairs.csv", *TEXTS[2:], *LEARN, "--matryoshka", "8", "--train.accumulate", "2")
    summary = json.loads(Path("runs/pairs/summary.json").read_text())
    assert summary["metrics"]["recall"] > 0.7 and summary["metrics"]["recall@8d"] > 0.4
    assert summary["baseline"]["cosine of TF-IDF"] < 0.3
    texts = ["cat sleeps hill", "mountain where kitten naps", "road runs hen", "mountain where hound hums"]
    lines = predicted(capsys, monkeypatch, "runs/pairs", "--embed", *texts)
    vectors = np.array([json.loads(line)["vector"] for line in lines])
    assert vectors.shape == (4, 32) and np.abs(np.linalg.norm(vectors, axis=1) - 1).max() < 1e-4
    assert (vectors @ vectors.T)[0].argsort()[-2] == 1


def test_scores_are_learnt_and_a_run_starts_another():
    draw, rows = random.Random(0), []
    for first, _ in paraphrases() * 2:
        who, does, place = first.split()
        kind = draw.choice([0, 0.5, 1])
        other = [pair for pair in WHO if who not in pair][draw.randrange(5)]
        second = {1: f"{place} {does} {who}", 0.5: f"{place} {does} {other[0]}", 0: f"the {other[1]}"}[kind]
        rows.append((first, second, kind))
    write(rows, "Sentence1,sentence2,score")
    train("pairs", "--data.path", "pairs.csv", *TEXTS[2:], *LEARN, "--out", "scored")
    metrics = json.loads(Path("scored/summary.json").read_text())["metrics"]
    assert metrics["spearman"] > 0.5 and metrics["pearson"] > 0.5
    write(paraphrases())
    short = [*SHORT, "--train.precision", "fp32"]
    train("pairs", "--data.path", "pairs.csv", *short, "--init", "scored", "--out", "again")
    assert json.loads(Path("again/model/config.json").read_text())["sentence_pool"] == "mean"


def make_batches():
    write(paraphrases())
    data = Pairs(path=Path("pairs.csv")).read(20)
    torch.manual_seed(0)
    encoder = EncoderConfig(dim=32, depth=1, heads=2, rotary="1d")
    config = TextConfig(
        vocab_size=data.tokenizer.size, head="none", head_dense=False, positions="none", encoder=encoder
    )
    model = PairEncoder(TextEncoder(config), 20.0).eval()
    return model, data, [data.train[i] for i in range(12)]


def test_the_loss_is_that_of_sentence_transformers_for_each_size():
    """MultipleNegativesRankingLoss, in both directions, in a MatryoshkaLoss."""
    model, data, samples = make_batches()
    objective = PairContrastive(sizes=(4, 16))
    batch, padded = collate_pairs(samples), collate_pairs(samples, pad=data.tokenizer.pad)
    with torch.no_grad():
        torch.testing.assert_close(objective.loss(model, batch), objective.loss(model, padded), rtol=1e-5, atol=1e-5)
        first, second = (model.encoder.pooled_texts([sample[side] for sample in samples]) for side in (0, 1))
        expected = torch.zeros(())
        for size in (32, 4, 16):
            cosines = F.cosine_similarity(first[:, None, :size], second[None, :, :size], dim=-1)
            own = torch.arange(12)
            both = [F.cross_entropy(20 * c, own, reduction="sum") for c in (cosines, cosines.T)]
            expected = expected + sum(both) / 2
        torch.testing.assert_close(objective.loss(model, batch), expected, rtol=1e-5, atol=1e-4)
        results = objective.evaluate(model, batch)
        whole = PairContrastive().metrics({**results, "vectors": results["vectors"]})
        assert objective.metrics(results)["recall"] == whole["recall"]
        vectors = shortened(results["vectors"][:, 0], 4)
        torch.testing.assert_close(vectors.norm(dim=1), results["vectors"][:, 0].norm(dim=1), rtol=1e-5, atol=0)


def test_micro_batches_have_the_gradients_of_the_whole():
    model, _, samples = make_batches()
    gradients = []
    for parts in ([samples], [samples[:5], samples[5:]]):
        own = copy.deepcopy(model)
        batches = [collate_pairs(part) for part in parts]
        step_gradients(Accelerator(cpu=True), own, PairContrastive(sizes=(8,)), batches)
        gradients.append({name: p.grad for name, p in own.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys() and len(gradients[0]) > 5
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-4, atol=1e-6)


def test_scores_are_compared_with_cosines():
    model, _, samples = make_batches()
    model.similarity = None
    targets = torch.linspace(-1, 1, 12, dtype=torch.float64)
    batch = collate_pairs([(*sample[:2], target) for sample, target in zip(samples, targets, strict=True)])
    with torch.no_grad():
        first, second = (model.encoder.pooled_texts([sample[side] for sample in samples]) for side in (0, 1))
        expected = sum(
            F.mse_loss(F.cosine_similarity(first[:, :n], second[:, :n]), targets.float(), reduction="sum")
            for n in (32, 8)
        )
        torch.testing.assert_close(PairScores(sizes=(8,)).loss(model, batch), expected, rtol=1e-5, atol=1e-5)


def test_pairs_that_share_a_text_belong_together():
    assert connected([["a", "b"], ["c", "d"], ["b", "e"], ["f", "c"]]) == [0, 1, 0, 1]
    assert connected([[], ["a"], ["a"], []]) == [0, 1, 1, 2] and connected([]) == []
    rows = [(f"a{n // 3}", f"b{n}") for n in range(60)]
    write(rows)
    data = Pairs(path=Path("pairs.csv")).read(20)
    parts = [{text.target for text in part.texts} for part in data.parts().values()]
    assert not (parts[0] & parts[1] or parts[0] & parts[2] or parts[1] & parts[2]) and len(set.union(*parts)) == 20


@pytest.mark.parametrize(
    "rows, header, words",
    [
        ([("a", "b")] * 9, "text,other", "has no column 'sentence1'"),
        ([("a", "b", 1), ("c", "d", "")] * 9, "sentence1,sentence2,score", "row 2 has no 'score', but other rows"),
        ([("a", "b", 3)] * 9, "sentence1,sentence2,score", "the score is 3, but that of a cosine is from -1 to 1"),
        ([("a", "b", "x")] * 9, "sentence1,sentence2,score", "the score 'x' is not a number"),
    ],
)
def test_mistakes(rows, header, words):
    write(rows, header)
    with pytest.raises(UserError, match=words):
        Pairs(path=Path("pairs.csv")).corpus()


def test_a_shortened_vector_that_is_too_long(capsys):
    write(paraphrases())
    with pytest.raises(SystemExit):
        train("pairs", "--data.path", "pairs.csv", *TEXTS, "--matryoshka", "16")
    assert "--matryoshka 16: the vectors have 16 numbers; choose fewer" in capsys.readouterr().err
