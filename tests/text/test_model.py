from dataclasses import replace

import pytest
import torch

from core import EncoderConfig, MaskedTokens, UserError, from_dict, to_dict
from core.objectives.objective import IGNORE, Batch
from core.sparse import Local
from text import TextConfig, TextEncoder
from text.model import OF_TOKENS

TINY = TextConfig(vocab_size=30, max_length=16, classes=5, encoder=EncoderConfig(dim=32, depth=2, heads=2))
ROTARY = replace(TINY.encoder, rotary="1d", rotary_theta=(1e5, 1e4), patterns=(None, Local(4, exact=True)))
VARIANTS = {
    "stock": TINY,
    "mean, no hidden": replace(TINY, pool="mean", head_dense=False),
    "segments": replace(TINY, segments=2, head_activation="relu", head_norm=True),
    "factorised, shared": replace(TINY, embedding_dim=8, encoder=replace(TINY.encoder, shared_groups=1)),
    "rotary, local": replace(TINY, positions="none", encoder=ROTARY),
    "post-norm": replace(TINY, encoder=replace(TINY.encoder, norm_order="post")),
    "tokens": replace(TINY, head="tokens", head_activation="gelu", head_norm=True),
    "tokens, factorised": replace(TINY, head="tokens", embedding_dim=8),
    "tokens, untied": replace(TINY, head="tokens", tie_weights=False),
    "tags": replace(TINY, head="tags", head_dense=False, labels=("O", "B-A", "I-A", "B-B", "I-B")),
    "spans": replace(TINY, head="spans"),
    "features": replace(TINY, head="none"),
    "a number": replace(TINY, classes=1, target_mean=3.0, target_std=0.5),
}
MASK = torch.arange(12) < torch.tensor([12, 7, 1])[:, None]


def make_ids() -> torch.Tensor:
    return torch.randint(5, 30, MASK.shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", VARIANTS)
def test_variants_learn_everywhere_and_come_back_from_disk(name, tmp_path):
    config = VARIANTS[name]
    torch.manual_seed(0)
    model = TextEncoder(config)
    ids = make_ids()
    out = model(ids, MASK)
    shape = {"classes": (3, config.classes), "tags": (3, 12, 5), "spans": (3, 12, 2), "tokens": (3, 12, 30)}
    shape |= {"none": (3, 32)}
    assert out.shape == shape[config.head]
    out[MASK if config.head in OF_TOKENS else ...].square().sum().backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, key
    assert from_dict(TextConfig, to_dict(config)) == config
    model.save_pretrained(tmp_path)
    again = TextEncoder.from_pretrained(tmp_path)
    torch.testing.assert_close(again(ids, MASK), out, rtol=0, atol=0)
    if config.head == "tokens":
        assert (again.head.out.weight is again.embed.words.weight) == config.tie_weights


@pytest.mark.parametrize("name", VARIANTS)
def test_a_text_alone_or_in_any_batch(name):
    torch.manual_seed(0)
    model = TextEncoder(VARIANTS[name]).eval()
    ids = make_ids()
    with torch.no_grad():
        together = model(ids, MASK)
        for row, length in enumerate(MASK.sum(dim=1).tolist()):
            beside = together[row, :length] if together.ndim == 3 else together[row]
            for mask in (None, torch.ones(1, length, dtype=torch.bool)):
                alone = model(ids[row : row + 1, :length], mask)[0]
                assert (alone - beside).abs().max() <= 1e-5 * max(1, beside.abs().max())
            vector = model.sentence_vectors(ids[row : row + 1, :length])[0]
            torch.testing.assert_close(vector, model.sentence_vectors(ids, MASK)[row], rtol=0, atol=1e-5)


def test_logits_of_the_hidden_words_alone():
    torch.manual_seed(0)
    model = TextEncoder(VARIANTS["tokens"]).eval()
    ids, where = make_ids(), MASK & (torch.arange(12) % 3 == 0)
    torch.testing.assert_close(model(ids, MASK, where=where), model(ids, MASK)[where])
    targets = ids.where(where, IGNORE)
    loss = MaskedTokens().loss(model, Batch((ids, MASK), targets))
    expected = torch.nn.functional.cross_entropy(model(ids, MASK).flatten(0, 1), targets.flatten(), reduction="sum")
    torch.testing.assert_close(loss, expected)


def test_segments_count_and_the_first_is_the_default():
    torch.manual_seed(0)
    model = TextEncoder(VARIANTS["segments"]).eval()
    ids = make_ids()
    first, second = torch.zeros_like(ids), torch.ones_like(ids)
    torch.testing.assert_close(model(ids, MASK), model(ids, MASK, first))
    assert not torch.allclose(model(ids, MASK, first), model(ids, MASK, second))


@pytest.mark.parametrize("pool", ["cls", "mean"])
def test_the_order_of_words_counts(pool):
    torch.manual_seed(0)
    ids = make_ids()
    for name in ("stock", "rotary, local"):
        model = TextEncoder(replace(VARIANTS[name], pool=pool)).eval()
        turned = torch.cat([ids[:, :1], ids[:, 1:].flip(1)], dim=1)
        assert not torch.allclose(model(ids), model(turned), atol=1e-5)


@pytest.mark.parametrize(
    "work, words",
    [
        (lambda: TextEncoder(TINY)(torch.zeros(1, 17, dtype=torch.long)), "17 tokens, .* positions for only 16"),
        (lambda: TextEncoder(TINY)(make_ids(), None, make_ids()), "the model has none: set `segments`"),
        (
            lambda: TextEncoder(replace(VARIANTS["tokens, factorised"], head_dense=False)),
            "an embedding_dim other than dim needs head_dense=True",
        ),
        (lambda: from_dict(TextConfig, {"vocab": 3}), "TextConfig: vocab is not a setting"),
    ],
)
def test_what_cannot_work_is_said(work, words):
    with pytest.raises(UserError, match=words):
        work()
