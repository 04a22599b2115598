"""ListOps: the grammar of Long Range Arena, values by an independent evaluator, and one data set for both tasks."""

import json
import statistics
from collections import Counter
from itertools import islice

import pytest
from text_runs import train

from core import IGNORE, UserError
from text.datasets import MaskedTexts
from text.listops import ListOps, listops_tokenizer

pytestmark = pytest.mark.usefixtures("without_figures")

DIGITS, FIRST = set("0123456789"), {"[MIN": min, "[MAX": max, "[MED": statistics.median, "[SM": sum}


def parsed(tokens):
    """A tree: a digit, or an operator and its arguments."""
    stack = [[]]
    for token in tokens:
        if token == "]":
            operation = tuple(stack.pop())
            stack[-1].append(operation)
        elif token in FIRST:
            stack.append([token])
        else:
            assert token in DIGITS
            stack[-1].append(int(token))
    assert len(stack) == len(stack[0]) == 1
    return stack[0][0]


def evaluated(tree):
    if isinstance(tree, int):
        return tree
    operator, *arguments = tree
    return int(FIRST[operator]([evaluated(argument) for argument in arguments])) % 10


def operations(tree, level=1):
    """Each operation of a tree: its operator, its number of arguments, and its level."""
    if not isinstance(tree, int):
        yield tree[0], len(tree) - 1, level
        for argument in tree[1:]:
            yield from operations(argument, level + 1)


def test_values_are_those_of_an_independent_evaluator():
    expressions = list(islice(ListOps().expressions("train"), 30))
    assert [value for _, value in expressions] == [evaluated(parsed(tokens)) for tokens, _ in expressions]
    assert len({value for _, value in expressions}) >= 8
    short = ListOps(longer_than=3, shorter_than=30, depth=3).expressions("train")
    pairs = [(evaluated(parsed(tokens)), value) for tokens, value in islice(short, 3000)]
    assert all(wanted == value for wanted, value in pairs)


def test_expressions_have_the_published_form():
    """Long Range Arena's generator: 500 < length < 2,000, digits at the tenth level, 2 to 10 arguments."""
    data = ListOps()
    expressions = [tokens for tokens, _ in islice(data.expressions("train"), 60)]
    assert all(500 < len(tokens) < 2000 for tokens in expressions)
    found = [operation for tokens in expressions for operation in operations(parsed(tokens))]
    assert {level for *_, level in found} == set(range(1, 10))
    arguments = Counter(count for _, count, _ in found)
    assert set(arguments) == set(range(2, 11)) and min(arguments.values()) > 0.09 * len(found)
    kinds = Counter(kind for kind, *_ in found)
    assert set(kinds) == set(FIRST) and all(abs(count / len(found) - 0.25) < 0.02 for count in kinds.values())


def test_without_limits_the_lengths_are_those_of_the_grammar():
    """A quarter of the arguments are operations, and an operation has six arguments in the mean."""
    expected = 1.0
    for _ in range(3):
        expected = 0.75 + 0.25 * (2 + 6 * expected)
    free = ListOps(longer_than=0, shorter_than=2**20, depth=4).expressions("train")
    lengths = [len(tokens) for tokens, _ in islice(free, 10_000)]
    assert statistics.mean(lengths) == pytest.approx(expected, rel=0.1)
    assert Counter(lengths)[1] / len(lengths) == pytest.approx(0.75, abs=0.02)


@pytest.fixture
def small(tmp_path):
    return {"samples": 40, "held_out": 10, "longer_than": 10, "shorter_than": 60, "cache": tmp_path / "kept"}


def test_one_file_serves_values_and_masked_tokens(small):
    values, masked = ListOps(**small).read(64), ListOps(**small, target="tokens").read(64)
    assert [len(part) for part in values.parts().values()] == [40, 10, 10] and values.labels == tuple("0123456789")
    assert len(list(small["cache"].iterdir())) == 1
    for split, part in values.parts().items():
        other = masked.parts()[split]
        assert isinstance(other, MaskedTexts) and [text.text for text in other.texts] == [t.text for t in part.texts]
        assert all(text.target == evaluated(parsed(text.text.split())) for text in part.texts)
    inputs, targets = masked.train[0]
    hidden = targets != IGNORE
    assert hidden.any() and (inputs[~hidden] == masked.train.ids[0][~hidden]).all()


def test_a_token_is_a_digit_an_operator_or_a_bracket(small):
    data, tokenizer = ListOps(**small).read(64), listops_tokenizer()
    text, ids = data.train.texts[0].text.split(), data.train.ids[0].tolist()
    assert len(ids) == len(text) + 2 and [tokenizer.letters(number) for number in ids[1:-1]] == text
    unknown = tokenizer.backend.token_to_id("[UNK]")
    assert not any((numbers == unknown).any() for numbers in data.train.ids)
    assert tokenizer.size == 5 + 10 + 4 + 1 and data.tokenizer.backend.to_str() == tokenizer.backend.to_str()


def test_splits_share_nothing_and_do_not_depend_on_the_number_to_train_on(small):
    few, more = ListOps(**small).read(64), ListOps(**{**small, "samples": 80}).read(64)
    for split in ("validation", "test"):
        assert [t.text for t in few.parts()[split].texts] == [t.text for t in more.parts()[split].texts]
    assert [t.text for t in few.train.texts] == [t.text for t in more.train.texts][:40]
    texts = [text.text for part in more.parts().values() for text in part.texts if len(text.text.split()) > 20]
    assert len(texts) == len(set(texts)) > 30


def test_expressions_are_generated_once(small, capsys):
    path = ListOps(**small).generated()
    before, said = path.stat().st_mtime_ns, capsys.readouterr().err
    assert said == f"Generating 60 expressions for {path}\n"
    ListOps(**small).read(64)
    assert path.stat().st_mtime_ns == before and not capsys.readouterr().err
    assert ListOps(**{**small, "depth": 9}).generated() != path


def test_what_cannot_be_generated_or_kept_is_said(small, tmp_path, monkeypatch):
    monkeypatch.setattr("text.listops.MOST_TRIES", 1000)
    with pytest.raises(UserError, match="none has more than 500 and fewer than 60 tokens: choose other lengths"):
        ListOps(**{**small, "longer_than": 500}).generated()
    assert not list(small["cache"].iterdir())
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot be kept \(.*\): name a directory with --data\.cache\."):
        ListOps(**{**small, "cache": tmp_path / "file"}).generated()


def test_masked_tokens_first_and_values_then(small, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("core.experiments.experiment.write_run_report", lambda *_: None)
    words = [f"--data.{name.replace('_', '-')}={value}" for name, value in small.items()]
    words += ["--model.dim=16", "--model.heads=2", "--model.depth=1", "--train.steps=3", "--train.warmup=1"]
    words += ["--train.batch-size=8", "--train.device=cpu", "--quiet"]
    train("listops", *words, "--data.target=tokens", f"--out={tmp_path / 'masked'}")
    train("listops", *words, f"--init={tmp_path / 'masked'}", f"--out={tmp_path / 'values'}")
    summary = json.loads((tmp_path / "values" / "summary.json").read_text())
    assert set(summary["metrics"]) >= {"accuracy"} and summary["test_samples"] == 10
    assert "unigram entropy" in capsys.readouterr().out
