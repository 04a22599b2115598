"""Texts of any lengths in one row, or in a list: each gets what it gets alone."""

import copy
import json
import pickle
from dataclasses import replace
from functools import partial
from pathlib import Path

import jaxtyping
import pytest
import torch
from small_runs import TEXTS
from text_peers import assert_close, make_peer, padded_batch
from torch.utils.data import Dataset

from core import EncoderConfig, MaskedTokens, UserError
from core.adapters import LoRA, Prompt, add
from core.attention.packing import Packing, Place
from core.experiments import train_command
from core.experiments.features import extract_features
from core.objectives.objective import IGNORE, Batch
from core.sparse import Causal, Local
from core.training import Task, TrainConfig, fit
from core.training.monitor import Monitor, blame
from text import TextConfig, TextEncoder, from_hf
from text.corpora import Text
from text.datasets import Texts, collate, collate_padded
from text.rows import pack_texts
from text.train import TEXT

LENGTHS = (9, 17, 1, 2, 30)
PADDING = 1
ENCODER = EncoderConfig(dim=16, depth=2, heads=2, norm_order="post")
BERT = TextConfig(vocab_size=40, max_length=32, segments=2, classes=3, encoder=ENCODER)
ROTARY = replace(
    ENCODER, depth=3, norm_order="pre", rotary="1d", rotary_theta=(1e5, 1e4, 1e4), patterns=(None, Local(4), Local(4))
)
CONFIGS = {
    "BERT": BERT,
    "RoBERTa": replace(BERT, segments=1, padding=PADDING),
    "ALBERT": replace(BERT, embedding_dim=8, encoder=replace(ENCODER, shared_groups=1)),
    "DistilBERT": replace(BERT, segments=0, head_activation="relu", pool="mean"),
    "ModernBERT": replace(BERT, segments=0, positions="none", pool="mean", encoder=ROTARY),
    "max": replace(BERT, segments=0, pool="max"),
    "last": replace(BERT, segments=0, pool="last"),
    "CLIP": replace(BERT, segments=0, pool="last", embedding_norm=False, encoder=replace(ENCODER, patterns=Causal())),
}
TOKENS = {"head": "tokens", "head_activation": "gelu", "head_norm": True}


def make_texts(lengths=LENGTHS):
    """Any token ids; the one that RoBERTa gives no position is among them."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(0, 40, (n,), generator=generator).clamp(min=PADDING) for n in lengths]


def make_model(config, dtype=torch.float64):
    torch.manual_seed(0)
    model = TextEncoder(config).to(dtype)
    with torch.no_grad():
        for parameter in model.parameters():  # zeros and ones would hide mistakes
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def assert_as_alone(model, together, alone, atol):
    """Outputs and the gradients of all weights. together, alone: compute the outputs of all texts, one row for each."""
    found = []
    for outputs in (together(), alone()):
        model.zero_grad()
        weights = torch.randn(outputs.shape, generator=torch.Generator().manual_seed(1)).to(outputs)
        (outputs * weights).sum().backward()
        found.append((outputs, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}))
    (outputs, gradients), (expected, expected_gradients) = found
    torch.testing.assert_close(outputs, expected, rtol=atol, atol=atol)
    assert gradients.keys() == expected_gradients.keys()
    scale = max(g.abs().max() for g in expected_gradients.values())
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected_gradients[name], rtol=0, atol=float(atol * scale), msg=name)


@pytest.mark.parametrize("dtype, atol", [(torch.float64, 1e-10), (torch.float32, 1e-5)])
@pytest.mark.parametrize("head", ["classes", "tokens"])
@pytest.mark.parametrize("name", CONFIGS)
def test_packed_texts_equal_texts_alone(name, head, dtype, atol):
    config = replace(CONFIGS[name], **(TOKENS if head == "tokens" else {}))
    model, texts = make_model(config, dtype), make_texts()
    segments = [torch.arange(len(ids)) % config.segments for ids in texts] if config.segments else None
    row, packing = pack_texts(texts)
    row_segments = None if segments is None else torch.cat(segments)[None]
    of_each = [None] * len(texts) if segments is None else [each[None] for each in segments]

    def alone():
        outputs = [model(ids[None], None, own) for ids, own in zip(texts, of_each, strict=True)]
        return torch.cat(outputs, dim=1 if head == "tokens" else 0)

    assert_as_alone(model, lambda: model(texts, None, segments), alone, atol)
    assert_as_alone(model, lambda: model(row, packing, row_segments), alone, atol)
    for reduce in (model.features, model.pooled_texts, model.sentence_vectors):
        expected = torch.cat([reduce(ids[None]) for ids in texts])
        torch.testing.assert_close(reduce(texts), expected, rtol=atol, atol=max(atol, 1e-6))
        torch.testing.assert_close(reduce(row, packing), expected, rtol=atol, atol=max(atol, 1e-6))
    if head == "tokens":
        where = [torch.arange(len(ids)) % 3 == 0 for ids in texts]
        expected = torch.cat([model(ids[None], where=each[None]) for ids, each in zip(texts, where, strict=True)])
        torch.testing.assert_close(model(texts, where=where), expected, rtol=atol, atol=atol)
        torch.testing.assert_close(model(row, packing, where=torch.cat(where)[None]), expected, rtol=atol, atol=atol)


@pytest.mark.parametrize("spec", [LoRA(rank=2), Prompt(tokens=3)])
@pytest.mark.parametrize("name", ["RoBERTa", "ModernBERT"])
def test_adapters_see_each_text_alone(name, spec):
    model, texts = make_model(CONFIGS[name]), make_texts()
    add(model, spec)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    assert_as_alone(model, lambda: model(texts), lambda: torch.cat([model(ids[None]) for ids in texts]), 1e-10)


def test_half_precision_is_as_near_as_it_can_be():
    model, texts = make_model(CONFIGS["ModernBERT"], torch.float32), make_texts()
    exact = torch.cat([model(ids[None]) for ids in texts])
    with torch.autocast("cpu", torch.bfloat16):
        packed, alone = model(texts), torch.cat([model(ids[None]) for ids in texts])
    error = (alone - exact).abs().max()
    assert 0 < (packed - exact).abs().max() <= 2 * error + 1e-3


@pytest.mark.parametrize("family", ["Bert", "Roberta"])
def test_packed_texts_equal_transformers_padded_batch(family):
    peer = make_peer(family, "ForSequenceClassification")
    ours = from_hf(peer).eval()
    ids, mask = padded_batch(family, peer)
    texts = [row[real] for row, real in zip(ids, mask, strict=True)]
    with torch.no_grad():
        expected = peer(ids, attention_mask=mask.long(), output_hidden_states=True)
        assert_close(ours(texts), expected.logits)
        assert_close(ours.encode(texts).x[0], expected.hidden_states[-1][mask])


def test_positions_and_their_padding_restart_in_each_text():
    embed = make_model(CONFIGS["RoBERTa"]).embed
    row, packing = pack_texts([torch.tensor([5, 1, 6]), torch.tensor([1, 7])])
    assert embed.position_ids(row, packing).tolist() == [[1, 0, 2, 0, 1]]


def masked_batches():
    """The same masked tokens, padded and packed."""
    texts = make_texts()
    targets = [ids.where(torch.arange(len(ids)) % 4 == 1, IGNORE) for ids in texts]  # a text of one token has none
    pad = lambda values, value: torch.nn.utils.rnn.pad_sequence(values, batch_first=True, padding_value=value)
    mask = torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]
    packed = Batch(pack_texts(texts), torch.cat(targets)[None])
    return Batch((pad(texts, 0), mask), pad(targets, IGNORE)), packed


def test_masked_tokens_of_a_packed_row_are_evaluated_text_by_text():
    model = make_model(replace(CONFIGS["RoBERTa"], **TOKENS), torch.float32).eval()
    padded, packed = masked_batches()
    objective = MaskedTokens()
    assert objective.count(packed) == objective.count(padded) > 0
    with torch.no_grad():
        torch.testing.assert_close(objective.loss(model, packed), objective.loss(model, padded))
        found, expected = objective.evaluate(model, packed), objective.evaluate(model, padded)
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        torch.testing.assert_close(found[name], values)
    assert objective.metrics(found) == pytest.approx(objective.metrics(expected))


def test_a_packing_travels_between_processes():
    _, packing = pack_texts(make_texts())
    for again in (pickle.loads(pickle.dumps(packing)), copy.deepcopy(packing)):
        assert torch.equal(again.places, packing.places)


# --- Training ---------------------------------------------------------------------------------------------------------


class Sentences(Dataset):
    """Masked tokens of texts of any lengths."""

    token_counts = list(LENGTHS) * 4

    def __len__(self):
        return len(self.token_counts)

    def __getitem__(self, index):
        ids = torch.randint(5, 40, (self.token_counts[index],), generator=torch.Generator().manual_seed(index))
        return ids, ids.where(torch.arange(len(ids)) % 4 == 0, IGNORE)


def trained(run, gather, **changes):
    model = make_model(replace(CONFIGS["BERT"], **TOKENS), torch.float32)
    config = TrainConfig(
        **{"steps": 3, "batch_size": 8, "warmup": 1, "log_every": 1, "precision": "fp32", "device": "cpu", "workers": 0}
        | changes
    )
    done = fit(Task(model, MaskedTokens(), Sentences(), Sentences(), gather), config, run)
    return done, [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("changes", [{"workers": 2, "accumulate": 2}, {"bucket_lengths": True, "ema": 0.5}])
def test_training_in_rows_equals_training_in_padded_batches(tmp_path, changes):
    padded, padded_rows = trained(tmp_path / "padded", partial(collate_padded, pad=0), **changes)
    packed, packed_rows = trained(tmp_path / "packed", collate, **changes)
    for name in ("loss", "correct", "masked"):
        assert packed.results[name].shape == (20,)
        torch.testing.assert_close(packed.results[name], padded.results[name], rtol=1e-4, atol=1e-4)
    for found, expected in zip(packed_rows, padded_rows, strict=True):
        assert found.keys() == expected.keys()
        for name in ("loss", "grad_norm"):
            assert found[name] == pytest.approx(expected[name], rel=1e-3)
        assert found["tokens_per_second"] > 0 and found["mfu"] > 0


@pytest.mark.parametrize(
    "batch",
    [
        lambda x, packing: Batch((x[None], packing), torch.zeros(3)),
        lambda x, packing: Batch((list(x.split([4, 2, 3])),), torch.zeros(3)),
        lambda x, packing: Batch((torch.zeros(1, 9), packing), torch.tensor([0.0, torch.inf, 0.0])),
        lambda x, packing: Batch((torch.zeros(1, 9), packing), x[None, :, 0]),
    ],
)
def test_the_sample_that_is_not_finite_is_named(batch):
    x, packing = torch.zeros(9, 2), Packing.of([Place(4), Place(2), Place(3)])
    x[5] = torch.nan
    assert blame(torch.nn.Linear(1, 1), None, batch(x, packing), [70, 80, 90]) == "training sample 80 holds NaN or inf"
    fine = batch(x.nan_to_num(), packing)
    fine = fine._replace(targets=fine.targets.nan_to_num(posinf=0))
    assert "training sample" not in blame(torch.nn.Linear(1, 1), None, fine, [70, 80, 90])


@pytest.mark.parametrize("name", ["BERT", "ModernBERT"])
def test_health_of_attention_is_that_of_the_first_text(name):
    model, texts = make_model(CONFIGS[name], torch.float32), make_texts()
    monitor, found = Monitor(model), []
    for batch in (texts, texts[0][None]):
        with monitor.watch():
            model(batch)
        found.append(monitor.attention())
    assert len(found[0]) == 2 * model.config.encoder.depth and found[0] == pytest.approx(found[1], rel=1e-4)


def test_features_of_packed_texts_are_probed():
    model = make_model(CONFIGS["BERT"], torch.float32)
    data = Texts([Text("", number % 2, "") for number in range(5)], [ids.tolist() for ids in make_texts()])
    assert data.token_counts == list(LENGTHS)
    vectors, classes = extract_features(model, TextEncoder.pooled_texts, data, collate)
    assert classes.tolist() == [0, 1, 0, 1, 0]
    for vector, ids in zip(vectors, make_texts(), strict=True):
        torch.testing.assert_close(torch.from_numpy(vector), model.pooled_texts(ids[None])[0], rtol=1e-5, atol=1e-5)


def test_the_command_trains_on_rows(listed, elsewhere):
    options = ["--train.bucket-lengths", "--train.workers", "1"]  # test_command.py is without them
    train_command(TEXT, ["manifest", "--data.path", str(listed), *TEXTS, *options])
    rows = [json.loads(line) for line in Path("runs/manifest/metrics.jsonl").read_text().splitlines()]
    assert "test_accuracy" in rows[-1]


# --- Mistakes ---------------------------------------------------------------------------------------------------------


WORDS = TextEncoder(BERT)
ROW, PACKING = pack_texts(make_texts())
BOOLS = [torch.ones(n, dtype=torch.bool) for n in LENGTHS]


@pytest.mark.parametrize(
    "work, words",
    [
        (lambda: WORDS([]), "There are no texts"),
        (lambda: WORDS([torch.tensor([3]), ROW[0, :0]]), "Text 2 of 2 is empty"),
        (lambda: WORDS([torch.tensor([3]), ROW]), r"Text 2 of 2 must be a tensor .* not \(1, 59\) numbers"),
        (lambda: WORDS(make_texts(), torch.ones(5, 30, dtype=torch.bool)), "A list of texts has no padding"),
        (lambda: WORDS(make_texts(), PACKING), "A list of texts has no padding"),
        (lambda: WORDS(make_texts((4, 33))), "Text 2 of 2 has 33 tokens, .* positions for only 32"),
        (lambda: WORDS(ROW, torch.ones(5, 30, dtype=torch.bool)), "5 x 30 values for 1 x 59 token ids; give a packed"),
        (lambda: WORDS(ROW[:, 1:], PACKING), "5 packed texts of 59 tokens together .* not in 1 x 58 of them"),
        (lambda: WORDS(ROW, Packing.of([Place(59, prefix=1)])), "neither prefix tokens nor grids"),
        (lambda: WORDS(ROW[:, :5], Packing.of([Place(5), Place(0)])), "Text 2 of 2 is empty"),
        (lambda: WORDS(make_texts(), None, ROW), "their segments must be one as well"),
        (
            lambda: WORDS(make_texts(), None, make_texts((9, 17, 1, 3, 30))),
            r"Text 4 of 5 has 2 tokens, .* \(3,\)",
        ),
        (lambda: WORDS(make_texts(), None, make_texts((9, 17))), "5 texts, but segments of 2"),
        (lambda: WORDS(ROW, PACKING, make_texts()), "The segments are a list, but the token ids are not"),
        (lambda: TextEncoder(replace(BERT, head="tokens"))(ROW, PACKING, where=BOOLS), "`where` is a list, but"),
    ],
)
def test_what_cannot_work_is_said(work, words, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as in production, where nobody checks before
    with pytest.raises(UserError, match=words):
        work()
