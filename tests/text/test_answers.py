"""Answers are the spans whose first and last token have the largest logits, in contexts of any length."""

import pytest
import torch
from text_peers import make_peer
from text_tokenizers import MAKERS

from core import UserError
from text import from_hf
from text.answers import LONGEST, answer, best_span
from text.predict import Arguments, predict
from text.tokenizer import Tokenizer

QUESTION = "who wrote the letter"
CONTEXT = "Three days later, the old captain wrote a long letter to his sister; nobody answered it before spring."


@pytest.fixture(params=["Bert", "Roberta"])
def model(request, tmp_path):
    tokenizer = MAKERS[request.param]()
    sizes = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}
    peer = make_peer(request.param, "ForQuestionAnswering", **sizes, max_position_embeddings=128)
    with torch.no_grad():
        peer.qa_outputs.weight.mul_(20)  # so that some spans are clearly better
    peer.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    return from_hf(tmp_path), Tokenizer.load(tmp_path, extend=False), peer, tokenizer, tmp_path


def by_force(peer, tokenizer, context, most=128):
    """The best span by trying each, in transformers, in stretches that overlap by half."""
    room = (
        most
        - tokenizer.num_special_tokens_to_add(pair=True)
        - len(tokenizer(QUESTION, add_special_tokens=False).input_ids)
    )
    cut = {"truncation": "only_second", "max_length": most, "stride": room - room // 2}
    given = tokenizer(QUESTION, context, return_offsets_mapping=True, return_overflowing_tokens=True, **cut)
    spans = []
    for number, ids in enumerate(given["input_ids"]):
        segments = (
            {} if "token_type_ids" not in given else {"token_type_ids": torch.tensor([given["token_type_ids"][number]])}
        )
        with torch.no_grad():
            out = peer(torch.tensor([ids]), **segments)
        places = [place for place, which in enumerate(given.sequence_ids(number)) if which == 1]
        offsets, start, end = given["offset_mapping"][number], out.start_logits[0], out.end_logits[0]
        for i in places:
            for j in range(i, min(i + LONGEST, places[-1] + 1)):
                chances = start[places].softmax(dim=0)[i - places[0]] * end[places].softmax(dim=0)[j - places[0]]
                spans.append(
                    (float(start[i] + end[j]), context[offsets[i][0] : offsets[j][1]], offsets[i][0], float(chances))
                )
    return len(given["input_ids"]), max(spans)[1:]


def test_the_answer_is_the_best_span(model):
    ours, tokenizer, peer, stock, _ = model
    for context in (CONTEXT, CONTEXT.split(";")[0], "captain"):
        found, (stretches, expected) = answer(ours, tokenizer, QUESTION, context), by_force(peer, stock, context)
        assert found[:2] == expected[:2] and abs(found.probability - expected[2]) < 1e-5
        assert stretches == 1


def test_a_long_context_is_read_in_stretches(model):
    ours, tokenizer, peer, stock, _ = model
    context = " ".join(f"{number}. {CONTEXT}" for number in range(6))
    stretches, expected = by_force(peer, stock, context, ours.config.max_length)
    found = answer(ours, tokenizer, QUESTION, context)
    assert found[:2] == expected[:2] and abs(found.probability - expected[2]) < 1e-5
    assert stretches > 3


def test_spans_are_neither_backwards_nor_too_long():
    logits = torch.tensor([[0.0, 9.0], [1.0, 0.0], [5.0, 0.0], [0.0, 2.0], [0.0, 8.0]])
    assert best_span(logits, 30) == (13.0, 2, 4)
    assert best_span(logits, 2) == (9.0, 0, 0)
    assert best_span(logits[1:4], 1) == (5.0, 1, 1)


def test_answers_by_command(model, capsys):
    ours, tokenizer, *_, folder = model
    predict(Arguments(run=str(folder), inputs=(QUESTION, CONTEXT)))
    found = answer(ours, tokenizer, QUESTION, CONTEXT)
    assert capsys.readouterr().out == f"{QUESTION}: {found.text} {found.probability:.0%}\n"
    with pytest.raises(UserError, match="give each question and its context, not 1 texts"):
        predict(Arguments(run=str(folder), inputs=(QUESTION,)))


def test_mistakes_are_one_sentence(model):
    ours, tokenizer, *_ = model
    with pytest.raises(UserError, match="finds no words in the question"):
        answer(ours, tokenizer, "", CONTEXT)
    with pytest.raises(UserError, match="leaves no room for a context"):
        answer(ours, tokenizer, QUESTION * 60, CONTEXT)
    other = from_hf(make_peer("Bert", "Model"))
    with pytest.raises(UserError, match="answers no questions"):
        answer(other, tokenizer, QUESTION, CONTEXT)
