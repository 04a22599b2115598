"""Texts that end at a token, and texts that are filled up to one length."""

import pytest
import torch

from core import EncoderConfig, UserError
from text import TextConfig, TextEncoder
from text.rows import end_texts, fill_texts, pack_texts

ENCODER = EncoderConfig(dim=16, depth=2, heads=2)
END, FILLER = 9, 3


def make_model(**config):
    torch.manual_seed(0)
    model = TextEncoder(
        TextConfig(vocab_size=10, max_length=8, pool="last", head_dense=False, encoder=ENCODER, **config)
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter))
    return model.double().eval()


def test_a_text_ends_at_its_first_end_token():
    ids = torch.tensor([[1, END, END, END], [1, 2, 4, END], [1, 2, 4, 5]])
    _, mask = end_texts(ids, None, END)
    assert mask.tolist() == [[True, True, False, False], [True] * 4, [True] * 4]
    _, mask = end_texts(ids, torch.tensor([[True] * 4, [True] * 4, [True, False, True, True]]), END)
    assert mask.tolist() == [[True, True, False, False], [True] * 4, [True, False, True, True]]
    texts, none = end_texts(list(ids), None, END)
    assert none is None and [text.tolist() for text in texts] == [[1, END], [1, 2, 4, END], [1, 2, 4, 5]]


def test_what_follows_the_end_does_not_count():
    model = make_model(end_token=END)
    ids = torch.tensor([[1, 5, END, 0, 0, 0], [1, 2, 4, 5, 6, END]])
    alone = torch.cat([model(ids[:1, :3]), model(ids[1:])])
    for given in ((ids,), (list(ids),), (pack_texts([ids[0, :3], ids[1]]))):
        torch.testing.assert_close(model(*given), alone)


def test_fillers_stand_behind_the_texts_whatever_their_padding():
    wanted = [[1, 2, FILLER, FILLER], [4, 5, 6, FILLER]]
    ids, mask = torch.tensor([[1, 2, 0], [4, 5, 6]]), torch.tensor([[True, True, False], [True] * 3])
    assert fill_texts(ids, mask, FILLER, 4).tolist() == wanted
    assert fill_texts(ids.flip(1), mask.flip(1), FILLER, 4).tolist() == [[2, 1, FILLER, FILLER], [6, 5, 4, FILLER]]
    texts = [torch.tensor([1, 2]), torch.tensor([4, 5, 6])]
    assert fill_texts(texts, None, FILLER, 4).tolist() == wanted
    assert fill_texts(*pack_texts(texts), FILLER, 4).tolist() == wanted


def test_a_filled_text_is_the_same_whatever_it_is_batched_with():
    model = make_model(filler=FILLER)
    texts = [torch.tensor([1, 2]), torch.tensor([4, 5, 6, 7])]
    full = model(torch.tensor([[1, 2, *[FILLER] * 6], [4, 5, 6, 7, *[FILLER] * 4]]))
    torch.testing.assert_close(model(texts), full)
    torch.testing.assert_close(torch.cat([model([text]) for text in texts]), full)
    assert not torch.allclose(make_model()(texts), full)  # fillers are attended to


def test_a_text_that_is_too_long_is_refused():
    with pytest.raises(UserError, match="A text has 9 tokens, but the model takes at most 8"):
        make_model(filler=FILLER)(torch.ones(1, 9, dtype=torch.int64))
