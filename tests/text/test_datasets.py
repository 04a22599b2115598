import ast
import json
import os
import re
import sys
from collections import Counter
from contextlib import nullcontext
from functools import partial
from itertools import chain, product
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tokenizers
import torch
from torch import nn

from core import IGNORE, Regression, UserError
from core.training.sampling import Order, SeededDataset
from text.corpora import (
    GIVEAWAY,
    PACKAGES,
    Text,
    read_docstrings,
    read_huggingface,
    read_lines,
    read_manifest,
    read_manuals,
)
from text.datasets import DataConfig, MaskedTexts, collate, hide, in_pieces, read_data, shortened
from text.tokenizer import TokenizerConfig, train_tokenizer
from text.train import TextExperiment, head_of

TOKENIZER = train_tokenizer(["one two three four five six seven eight nine ten"] * 3, TokenizerConfig(vocab_size=60))


@pytest.fixture(scope="module")
def docstrings():
    return read_docstrings()


def normal(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.lower()))


def test_docstrings_are_split_once_for_all_without_giveaways_or_duplicates(docstrings):
    train, test, labels = docstrings
    assert set(labels) <= set(PACKAGES) and len(labels) >= 10
    assert len(train) > 1500 and 0.24 < len(test) / (len(train) + len(test)) < 0.26
    shares = [Counter(text.target for text in part) for part in (train, test)]
    assert all(abs(shares[0][c] / len(train) - shares[1][c] / len(test)) < 0.01 for c in range(len(labels)))
    texts = [normal(text.text) for part in (train, test) for text in part]
    assert len(texts) == len(set(texts))
    for text in (*train, *test):
        assert not re.search(rf"\b({'|'.join(PACKAGES)})\b", text.text, re.IGNORECASE)


def test_a_docstring_is_its_packages_own(docstrings):
    text = docstrings.test[0]
    file, line = re.fullmatch(r"(.+), line (\d+)", text.where).groups()
    source = (Path(ast.__file__).parent / file).read_bytes()
    nodes = [node for node in ast.walk(ast.parse(source)) if hasattr(node, "body")]
    found = [n.body[0].value.value for n in nodes if isinstance(n.body, list) and n.body[0].lineno == int(line)]
    assert normal(GIVEAWAY.sub("module", found[0])) == normal(text.text)
    assert file.startswith(docstrings.labels[text.target])


def test_manuals_never_hold_a_test_docstring(docstrings):
    manuals = read_manuals(0.1)
    texts = [text for part in (manuals.train, manuals.test) for text in part]
    held_out = {normal(text.text) for text in docstrings.test}
    assert not held_out & {normal(text.text) for text in texts}
    whole = " | ".join(normal(text.text) for text in texts if text.where.startswith("pydoc topic"))
    assert not [text for text in held_out if len(text.split()) > 8 and text in whole]
    assert len(texts) > len(docstrings.train) + 70


def test_hidden_words_are_devlins():
    ids = torch.cat([torch.tensor([TOKENIZER.first]), torch.full((10_000,), 7), torch.tensor([TOKENIZER.last])])
    inputs, targets = hide(ids, TOKENIZER, torch.Generator().manual_seed(0))
    hidden = targets != IGNORE
    assert hidden.sum() == 1500 and not hidden[0] and not hidden[-1]
    assert torch.equal(targets[hidden], ids[hidden]) and torch.equal(inputs[~hidden], ids[~hidden])
    assert 0.77 < (inputs[hidden] == TOKENIZER.mask).float().mean() < 0.83
    others = (inputs[hidden] != TOKENIZER.mask) & (inputs[hidden] != 7)
    assert 0.07 < others.float().mean() < 0.13
    shortest = torch.tensor([TOKENIZER.first, 7, TOKENIZER.last])
    assert (hide(shortest, TOKENIZER)[1] != IGNORE).tolist() == [False, True, False]


def test_hidden_words_are_a_function_of_seed_epoch_and_index():
    texts = [Text("one two three four five six seven eight nine ten", 0, "")] * 3
    ids = [TOKENIZER.frame(numbers) for numbers in TOKENIZER.encode([text.text for text in texts])]
    train, test = (MaskedTexts(texts, ids, TOKENIZER, fixed) for fixed in (False, True))
    seeded, other = SeededDataset(train, 0), SeededDataset(train, 1)
    draws = [seeded[(epoch, 1)][1] for epoch in range(8)]
    torch.rand(5)
    assert torch.equal(seeded[(3, 1)][1], draws[3])
    assert len({tuple(draw.tolist()) for draw in draws}) > 1
    assert any(not torch.equal(other[(epoch, 1)][1], draws[epoch]) for epoch in range(8))
    assert torch.equal(test[1][0], test[1][0]) and torch.equal(test[1][1], test[1][1])
    assert len({tuple(test[i][1].tolist()) for i in range(3)}) > 1


def test_batches_are_padded_to_the_longest_and_have_a_mask_only_if_padded():
    samples = [(torch.arange(1, n + 1), torch.tensor(n)) for n in (2, 4, 3)]
    (ids, mask), targets = collate(samples, pad=9)
    assert ids.tolist() == [[1, 2, 9, 9], [1, 2, 3, 4], [1, 2, 3, 9]] and targets.tolist() == [2, 4, 3]
    assert mask.sum(dim=1).tolist() == [2, 4, 3] and (ids[~mask] == 9).all()
    assert collate([samples[0], samples[0]], pad=9).inputs[1] is None
    words = collate([(numbers, numbers) for numbers, _ in samples], pad=9).targets
    assert words[0].tolist() == [1, 2, IGNORE, IGNORE]


def test_bucketed_batches_pad_little_and_miss_nothing():
    lengths = np.exp(np.random.default_rng(0).uniform(np.log(16), np.log(512), 4096)).astype(int)
    samples = [(torch.zeros(n, dtype=torch.long), torch.tensor(0)) for n in lengths.tolist()]
    gather = partial(collate, pad=0)

    def waste(order):
        sizes = [gather([samples[i] for _, i in order.step(step)]).inputs[0].numel() for step in range(4096 // 16)]
        return sum(sizes) / lengths.sum()

    bucketed = Order(0, len(samples), 16, lengths.tolist())
    assert waste(bucketed) < 1.1 < 2 < waste(Order(0, len(samples), 16))
    seen = [index for step in range(4096 // 16) for _, index in bucketed.step(step)]
    assert sorted(seen) == list(range(4096))


def test_long_texts_are_cut_with_a_count_or_refused():
    texts = [Text("a", 0, f"list.csv, row {number}") for number in (1, 2, 3)]
    ids = [[5] * 3, [5] * 8, [5] * 9]
    with pytest.warns(UserWarning, match="2 of 3 texts have more than 9 tokens and were cut"):
        assert [len(numbers) for numbers in shortened(texts, ids, 7, "truncate")] == [3, 7, 7]
    with pytest.raises(UserError, match="row 2: 10 tokens, but the model takes 9: shorten"):
        shortened(texts, ids, 7, "error")
    _, pieces = in_pieces(texts, [list(range(20)), [1], []], 7)
    assert [len(piece) for piece in pieces] == [6, 7, 7, 1] and [*chain(*pieces[:3])] == list(range(20))


def test_csv_and_jsonl_in_any_encoding_agree(tmp_path):
    rows = [("naïve, “quoted”\nand on two lines", "no"), ("líne\u2028separator", "yes"), ("x", "no"), ("y", "yes")]
    quoted = "".join('"{}",{}\n'.format(text.replace('"', '""'), label) for text, label in rows)
    (tmp_path / "list.csv").write_text("text,label\n" + quoted, encoding="utf-16")
    lines = "".join(json.dumps({"text": t, "label": c}, ensure_ascii=False) + "\n" for t, c in rows)
    (tmp_path / "list.jsonl").write_text(lines, encoding="utf-8-sig")
    found = [
        read_manifest(tmp_path / "list.csv", "classes", 0.5, "utf-16"),
        read_manifest(tmp_path / "list.jsonl", "classes", 0.5, "utf-8"),
    ]
    for corpus in found:
        assert {(text.text, corpus.labels[text.target]) for part in corpus[:2] for text in part} == set(rows)
    assert [len(part) for part in found[0][:2]] == [2, 2]


def test_numbers_and_hidden_words_of_a_manifest(tmp_path):
    path = tmp_path / "list.csv"
    path.write_text("text,label,split\none two,1.5,train\nthree four,-2e1,train\nfive six,0,test\n")
    numbers = read_manifest(path, "number", 0.2, "utf-8")
    assert [text.target for text in numbers.train] == [1.5, -20.0] and numbers.labels == ()
    config = DataConfig(name="manifest", path=path, target="tokens", tokenizer=TokenizerConfig(vocab_size=60))
    data = read_data(config, 16)
    assert isinstance(data.train, MaskedTexts) and len(data.train) == 2 and len(data.test) == 1


class Says(nn.Module):
    """A model of given outputs."""

    def __init__(self, outputs: torch.Tensor):
        super().__init__()
        self.outputs = outputs

    def forward(self, *inputs):
        return self.outputs


@pytest.mark.parametrize("offset, step", [(2**24, 1.0), (1e9, 0.25), (1.7e15, 1.0), (0.0, 1e-9)])
def test_large_and_tiny_numbers_keep_their_digits(offset, step, tmp_path):
    """Labels of 2 ** 24 and more differ by less than float32 can say; a loss must not depend on where zero is."""
    numbers = [offset + step * k for k in range(20)]
    lines = [json.dumps({"text": f"number {k}", "label": value}) for k, value in enumerate(numbers)]
    (tmp_path / "list.jsonl").write_text("\n".join(lines))
    data = read_data(DataConfig(name="manifest", path=tmp_path / "list.jsonl", target="number"), 16)
    texts = [*data.train.texts, *data.test.texts]
    assert sorted(text.target for text in texts) == numbers
    batch = collate([data.train[k] for k in range(len(data.train))], pad=0)
    assert batch.targets.tolist() == [text.target for text in data.train.texts]
    known = head_of(TextExperiment(data=DataConfig(name="manifest", target="number")), data)
    objective = Regression(mean=known["target_mean"], std=known["target_std"])
    wanted = (np.array(batch.targets.tolist()) - known["target_mean"]) / known["target_std"]
    loss = objective.loss(Says(torch.zeros(len(wanted), 1)), batch).item()
    assert loss == pytest.approx((wanted**2).sum(), rel=1e-5)
    perfect = Says(torch.tensor(wanted, dtype=torch.float32)[:, None])
    metrics = objective.metrics(objective.evaluate(perfect, batch))
    assert metrics["r2"] == pytest.approx(1.0) and metrics["mae"] < 1e-6 * step * 20


def test_equal_numbers_are_not_divided_by_rounding_errors(tmp_path):
    (tmp_path / "list.csv").write_text("text,label\n" + "".join(f"text {k},0.1\n" for k in range(4)))
    data = read_data(DataConfig(name="manifest", path=tmp_path / "list.csv", target="number"), 16)
    assert head_of(TextExperiment(data=DataConfig(name="manifest", target="number")), data)["target_std"] == 1.0


def test_labels_of_json_and_of_tables_are_named_by_one_rule(tmp_path):
    rows = [(1, "a"), (1.0, "b"), ("1", "c"), (True, "d"), (True, "e"), ("x", "f"), ("x", "g")]
    (tmp_path / "list.jsonl").write_text("\n".join(json.dumps({"text": t, "label": v}) for v, t in rows))
    assert read_manifest(tmp_path / "list.jsonl", "classes", 0.3, "utf-8").labels == ("1", "true", "x")
    (tmp_path / "list.csv").write_text(
        "text,label\n" + "".join(f"{t},{v}\n" for v, t in [*rows[:2], (2, "h"), (2, "i")])
    )
    assert read_manifest(tmp_path / "list.csv", "classes", 0.3, "utf-8").labels == ("1", "2")
    for wrong, words in (
        (None, "row 2 has no 'label'"),
        ([1], "row 2: 'label' is a list"),
        ({}, "'label' is an object"),
    ):
        lines = [{"text": "a", "label": 1}, {"text": "b", "label": wrong}]
        (tmp_path / "list.jsonl").write_text("\n".join(map(json.dumps, lines)))
        with pytest.raises(UserError, match=words):
            read_manifest(tmp_path / "list.jsonl", "classes", 0.3, "utf-8")
    (tmp_path / "list.jsonl").write_text('{"text": {"a": 1}, "label": 1}')
    with pytest.raises(UserError, match="row 1: 'text' is an object"):
        read_manifest(tmp_path / "list.jsonl", "tokens", 0.3, "utf-8")


def test_a_text_in_both_parts_is_said(tmp_path):
    head = "text,label,split\none,a,train\ntwo,b,Training\n"
    (tmp_path / "list.csv").write_text(head + "two ,b,validation\nthree,a,dev\n")
    with pytest.warns(UserWarning, match=r"1 of 2 texts to test on .* too, such as .*csv, row 2 and .*csv, row 3"):
        corpus = read_manifest(tmp_path / "list.csv", "classes", 0.3, "utf-8")
    assert [text.text for text in corpus.test] == ["two ", "three"]


def test_a_byte_order_mark_decides_on_the_encoding(tmp_path):
    table = "text;label\nnaïve;a\nlíne;a\nx;b\ny;b\n"
    for mark, encoding in product(["utf-8-sig", "utf-16", "utf-32"], ["utf-8", "latin-1", "utf-16-le"]):
        (tmp_path / "list.csv").write_text(table, encoding=mark)
        corpus = read_manifest(tmp_path / "list.csv", "classes", 0.5, encoding)
        assert {text.text for part in corpus[:2] for text in part} == {"naïve", "líne", "x", "y"}
    (tmp_path / "list.csv").write_text(table, encoding="cp1252")
    assert len(read_manifest(tmp_path / "list.csv", "classes", 0.5, "cp1252").labels) == 2
    for encoding, words in (
        ("utf-8", r"is not utf-8 text \(byte 13\): save it as UTF-8, or name its encoding where --data.encoding"),
        ("utf-9", "'utf-9' is not an encoding"),
        ("hex", "'hex' is not an encoding"),
        ("", "'' is not an encoding"),
        ("undefined", "is not undefined text"),
    ):
        with pytest.raises(UserError, match=words):
            read_manifest(tmp_path / "list.csv", "classes", 0.5, encoding)


def test_files_of_lines_are_found_as_people_have_them(tmp_path):
    (tmp_path / "texts" / "deep.txt").mkdir(parents=True)
    (tmp_path / "texts" / "A.TXT").write_bytes(b"one\rtwo\r\nthree")
    (tmp_path / "texts" / "deep.txt" / "b.txt").write_text("four\n")
    for left in (".ipynb_checkpoints", "__MACOSX", "."):
        (tmp_path / "texts" / left).mkdir(exist_ok=True)
        (tmp_path / "texts" / left / "._A.txt").write_bytes(b"\0\xff")
    corpus = read_lines(tmp_path / "texts", 0.25, "utf-8")
    found = {text.text: text.where.removeprefix(f"{tmp_path}/texts/") for part in corpus[:2] for text in part}
    lines = {"one": "A.TXT, line 1", "two": "A.TXT, line 2", "three": "A.TXT, line 3", "four": "deep.txt/b.txt, line 1"}
    assert found == lines
    os.mkfifo(tmp_path / "texts" / "c.txt")
    for path in ("texts", "texts/c.txt"):
        with pytest.raises(UserError, match=r"c\.txt is a pipe, socket or device"):
            read_lines(tmp_path / path, 0.25, "utf-8")
    with pytest.raises(UserError, match=r"c\.txt is a pipe, socket or device, not a manifest"):
        read_manifest(tmp_path / "texts" / "c.txt", "tokens", 0.25, "utf-8")
    (tmp_path / "nul.txt").write_bytes(b"one\ntw\0o\n")
    with pytest.raises(UserError, match=r"nul\.txt is not utf-8 text \(a null character in line 2\)"):
        read_lines(tmp_path / "nul.txt", 0.25, "utf-8")


def test_lines_of_a_file_or_folder(tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "b.txt").write_text("three\n\n  \nfour\n")
    (tmp_path / "a.txt").write_text("one\r\ntwo", newline="")
    corpus = read_lines(tmp_path, 0.25, "utf-8")
    found = {text.text: text.where for part in corpus[:2] for text in part}
    assert set(found) == {"one", "two", "three", "four"} and found["four"].endswith("b.txt, line 4")
    (tmp_path / "a.txt").write_bytes("gr\u00fc\u00dfe\n".encode("latin-1"))
    with pytest.raises(UserError, match=r"a.txt is not utf-8 text \(byte 2\)"):
        read_lines(tmp_path, 0.25, "utf-8")
    assert "grüße" in {text.text for part in read_lines(tmp_path, 0.25, "latin-1")[:2] for text in part}


def test_the_test_set_is_read_in_order_of_length(listed):
    data = read_data(DataConfig(name="manifest", path=listed), 32)
    assert data.test.lengths == sorted(data.test.lengths)
    ids, target = data.test[0]
    words = TOKENIZER  # of other texts: it must not be used here
    assert data.tokenizer.size != words.size
    assert data.tokenizer.backend.decode(ids.tolist()) == data.test.texts[0].text
    assert data.labels[target] == ("fruit" if "apple" in data.test.texts[0].text else data.labels[target])


def hub_data(monkeypatch, rows, label=None):
    """The package `datasets`, as far as it is used, with one data set of these rows."""

    class ClassLabel:
        def int2str(self, number):
            return ["no", "yes"][number]

    class Split(list):
        features = {"text": "string", "label": label or ClassLabel(), "other": "string"}

    package = SimpleNamespace(
        load_dataset=lambda name: {"train": Split(rows)},
        ClassLabel=ClassLabel,
        exceptions=SimpleNamespace(DatasetsError=OSError),
    )
    monkeypatch.setitem(sys.modules, "datasets", package)


ROWS = [{"text": f"one two {i}", "label": i % 2, "other": [i]} for i in range(8)]


def test_a_hugging_face_data_set_is_read_whole(monkeypatch):
    hub_data(monkeypatch, ROWS)
    corpus = read_huggingface("a/b", "classes", 0.25, ("text", "label"))
    assert corpus.labels == ("no", "yes") and len(corpus.train) == 6 and len(corpus.test) == 2


@pytest.mark.parametrize(
    "row, fields, words",
    [
        ({"label": None}, ("text", "label"), "a/b, train row 3 has no 'label'"),
        ({"label": -1}, ("text", "label"), "a/b, train row 3 has no 'label'"),
        ({"text": None}, ("text", "label"), "a/b, train row 3: the text is empty"),
        ({}, ("other", "label"), "a/b, train row 1 holds a list where text or a number belongs"),
        ({}, ("sentence", "label"), "no column 'sentence'; its columns are: text, label, other"),
        ({}, ("text", "class"), "no column 'class'; its columns are: text, label, other"),
    ],
)
def test_rows_of_a_hugging_face_data_set_that_cannot_be_learnt(row, fields, words, monkeypatch):
    hub_data(monkeypatch, [*ROWS[:2], ROWS[2] | row, *ROWS[3:]])
    with pytest.raises(UserError, match=words):
        read_huggingface("a/b", "classes", 0.25, fields)


@pytest.mark.parametrize("target", ["classes", "tokens"])
def test_texts_between_more_tokens_of_a_frame(target, tmp_path):
    names = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]", "[LANG]", "one", "two"]
    ids = {name: number for number, name in enumerate(names)}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(ids, unk_token="[UNK]"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    backend.add_special_tokens([name for name in ids if name[0] == "["])
    frame = "[CLS] [LANG] $A [SEP]"
    ends = [(name, ids[name]) for name in ("[CLS]", "[LANG]", "[SEP]")]
    backend.post_processor = tokenizers.processors.TemplateProcessing(single=frame, special_tokens=ends)
    backend.save(str(tmp_path / "tokenizer.json"))
    path = tmp_path / "list.csv"
    path.write_text("text,label\n" + "".join(f"{'one two ' * n},{n % 2}\n" for n in range(1, 9)))
    options = {"target": target, "tokenizer": TokenizerConfig(path=tmp_path / "tokenizer.json")}
    read = DataConfig(name="manifest", path=path, **options)
    context = pytest.warns(UserWarning, match="have more than 8 tokens") if target == "classes" else nullcontext()
    with context:
        data = read_data(read, 8)
    for index in range(len(data.train)):
        inputs, targets = data.train[index]
        assert inputs[:2].tolist() == [1, 5] and inputs[-1] == 2 and len(inputs) <= 8
        if target == "tokens":
            assert (targets[[0, 1, -1]] == IGNORE).all() and (targets != IGNORE).any()
    with pytest.raises(UserError, match="A model of 3 tokens has no room for text: 3 of them are special tokens"):
        read_data(read, 3)
