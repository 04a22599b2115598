"""Where texts come from: the standard library, manifests, lines and Hugging Face data sets."""

import ast
import json
import os
import re
import sys
from collections import Counter
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import pytest
from samplefiles import every

from core import UserError
from core.data.dataset import SplitFractions
from text.corpora import (
    GIVEAWAY,
    PACKAGES,
    read_docstrings,
    read_huggingface,
    read_lines,
    read_manifest,
    read_manuals,
)

FRACTIONS = SplitFractions(test_fraction=0.25)


@pytest.fixture(scope="module")
def docstrings():
    return read_docstrings()


def normal(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.lower()))


def test_docstrings_are_split_once_for_all_without_giveaways_or_duplicates(docstrings):
    labels, parts = docstrings.labels, list(docstrings.parts().values())
    assert set(labels) <= set(PACKAGES) and len(labels) >= 10
    sizes = [len(part) / len(every(docstrings)) for part in parts]
    assert len(parts[0]) > 1400 and sizes == pytest.approx([0.675, 0.075, 0.25], abs=0.002)
    shares = [[Counter(text.target for text in part)[c] / len(part) for c in range(len(labels))] for part in parts]
    assert shares[1] == pytest.approx(shares[0], abs=0.02) and shares[2] == pytest.approx(shares[0], abs=0.01)
    texts = [normal(text.text) for part in parts for text in part]
    assert len(texts) == len(set(texts))
    for text in every(docstrings):
        assert not re.search(rf"\b({'|'.join(PACKAGES)})\b", text.text, re.IGNORECASE)


def test_a_docstring_is_its_packages_own(docstrings):
    text = docstrings.test[0]
    file, line = re.fullmatch(r"(.+), line (\d+)", text.where).groups()
    source = (Path(ast.__file__).parent / file).read_bytes()
    nodes = [node for node in ast.walk(ast.parse(source)) if hasattr(node, "body")]
    found = [n.body[0].value.value for n in nodes if isinstance(n.body, list) and n.body[0].lineno == int(line)]
    assert normal(GIVEAWAY.sub("module", found[0])) == normal(text.text)
    assert file.startswith(docstrings.labels[text.target])


def test_manuals_never_hold_a_test_docstring_nor_train_on_one_for_validation(docstrings):
    manuals = read_manuals(SplitFractions(test_fraction=0.1))
    texts = every(manuals)
    held_out = {normal(text.text) for text in docstrings.test}
    assert not held_out & {normal(text.text) for text in texts}
    assert not {text.where for text in docstrings.validation} & {text.where for text in manuals.train}
    whole = " | ".join(normal(text.text) for text in texts if text.where.startswith("pydoc topic"))
    assert not [text for text in held_out if len(text.split()) > 8 and text in whole]
    assert len(texts) > len(docstrings.train) + 70


def test_csv_and_jsonl_in_any_encoding_agree(tmp_path):
    rows = [("naïve, “quoted”\nand on two lines", "no"), ("líne\u2028separator", "yes"), ("x", "no"), ("y", "yes")]
    rows += [("v", "no"), ("w", "yes")]
    quoted = "".join('"{}",{}\n'.format(text.replace('"', '""'), label) for text, label in rows)
    (tmp_path / "list.csv").write_text("text,label\n" + quoted, encoding="utf-16")
    lines = "".join(json.dumps({"text": t, "label": c}, ensure_ascii=False) + "\n" for t, c in rows)
    (tmp_path / "list.jsonl").write_text(lines, encoding="utf-8-sig")
    found = [
        read_manifest(tmp_path / "list.csv", "classes", FRACTIONS, "utf-16"),
        read_manifest(tmp_path / "list.jsonl", "classes", FRACTIONS, "utf-8"),
    ]
    for corpus in found:
        assert {(text.text, corpus.labels[text.target]) for text in every(corpus)} == set(rows)
    assert [len(part) for part in found[0].parts().values()] == [2, 2, 2]


def test_labels_of_json_and_of_tables_are_named_by_one_rule(tmp_path):
    rows = [(1, "a"), (1.0, "b"), ("1", "c"), (True, "d"), (True, "e"), ("x", "f"), ("x", "g")]
    (tmp_path / "list.jsonl").write_text("\n".join(json.dumps({"text": t, "label": v}) for v, t in rows))
    assert read_manifest(tmp_path / "list.jsonl", "classes", FRACTIONS, "utf-8").labels == (
        "1",
        "true",
        "x",
    )
    (tmp_path / "list.csv").write_text(
        "text,label\n" + "".join(f"{t},{v}\n" for v, t in [*rows[:2], (2, "h"), (2, "i"), (2, "j")])
    )
    assert read_manifest(tmp_path / "list.csv", "classes", FRACTIONS, "utf-8").labels == (
        "1",
        "2",
    )
    for wrong, words in (
        (None, "row 2 has no 'label'"),
        ([1], "row 2: 'label' is a list"),
        ({}, "'label' is an object"),
    ):
        lines = [{"text": "a", "label": 1}, {"text": "b", "label": wrong}]
        (tmp_path / "list.jsonl").write_text("\n".join(map(json.dumps, lines)))
        with pytest.raises(UserError, match=words):
            read_manifest(tmp_path / "list.jsonl", "classes", FRACTIONS, "utf-8")
    (tmp_path / "list.jsonl").write_text('{"text": {"a": 1}, "label": 1}')
    with pytest.raises(UserError, match="row 1: 'text' is an object"):
        read_manifest(tmp_path / "list.jsonl", "tokens", FRACTIONS, "utf-8")


def test_a_text_in_two_splits_is_said(tmp_path):
    head = "text,label,split\none,a,train\ntwo,b,Training\n"
    (tmp_path / "list.csv").write_text(head + "two ,b,validation\nthree,a,dev\nfour,b,test\n")
    with pytest.warns(UserWarning, match=r"1 of 2 texts to validate on .* too, such as .*csv, row 2 and .*csv, row 3"):
        corpus = read_manifest(tmp_path / "list.csv", "classes", FRACTIONS, "utf-8")
    assert [text.text for text in corpus.validation] == ["two ", "three"]
    (tmp_path / "list.csv").write_text(head + "three,a,dev\ntwo,a,test\n")
    with pytest.warns(UserWarning, match=r"1 of 1 texts to test on .* too, such as .*csv, row 2 and .*csv, row 4"):
        read_manifest(tmp_path / "list.csv", "classes", FRACTIONS, "utf-8")


@pytest.mark.parametrize("target", ["classes", "number", "tokens"])
def test_groups_of_texts_are_whole(target, tmp_path):
    rows = "".join(f"text {n},{n % 2},author {n // 4}\n" for n in range(48))
    (tmp_path / "list.csv").write_text("text,label,author\n" + rows)
    corpus = read_manifest(tmp_path / "list.csv", target, FRACTIONS, "utf-8", "author")
    authors = [{int(text.text.split()[1]) // 4 for text in part} for part in corpus.parts().values()]
    assert [len(part) for part in authors] == [8, 1, 3] and len(set.union(*authors)) == 12


def test_a_byte_order_mark_decides_on_the_encoding(tmp_path):
    table = "text;label\nnaïve;a\nlíne;a\nx;b\ny;b\nz;b\n"
    for mark, encoding in product(["utf-8-sig", "utf-16", "utf-32"], ["utf-8", "latin-1", "utf-16-le"]):
        (tmp_path / "list.csv").write_text(table, encoding=mark)
        corpus = read_manifest(tmp_path / "list.csv", "classes", FRACTIONS, encoding)
        assert {text.text for text in every(corpus)} == {"naïve", "líne", "x", "y", "z"}
    (tmp_path / "list.csv").write_text(table, encoding="cp1252")
    assert len(read_manifest(tmp_path / "list.csv", "classes", FRACTIONS, "cp1252").labels) == 2
    for encoding, words in (
        ("utf-8", r"is not utf-8 text \(byte 13\): save it as UTF-8, or name its encoding where --data.encoding"),
        ("utf-9", "'utf-9' is not an encoding"),
        ("hex", "'hex' is not an encoding"),
        ("", "'' is not an encoding"),
        ("undefined", "is not undefined text"),
    ):
        with pytest.raises(UserError, match=words):
            read_manifest(tmp_path / "list.csv", "classes", FRACTIONS, encoding)


def test_files_of_lines_are_found_as_people_have_them(tmp_path):
    (tmp_path / "texts" / "deep.txt").mkdir(parents=True)
    (tmp_path / "texts" / "A.TXT").write_bytes(b"one\rtwo\r\nthree")
    (tmp_path / "texts" / "deep.txt" / "b.txt").write_text("four\n")
    for left in (".ipynb_checkpoints", "__MACOSX", "."):
        (tmp_path / "texts" / left).mkdir(exist_ok=True)
        (tmp_path / "texts" / left / "._A.txt").write_bytes(b"\0\xff")
    corpus = read_lines(tmp_path / "texts", FRACTIONS, "utf-8")
    found = {text.text: text.where.removeprefix(f"{tmp_path}/texts/") for text in every(corpus)}
    lines = {"one": "A.TXT, line 1", "two": "A.TXT, line 2", "three": "A.TXT, line 3", "four": "deep.txt/b.txt, line 1"}
    assert found == lines
    os.mkfifo(tmp_path / "texts" / "c.txt")
    for path in ("texts", "texts/c.txt"):
        with pytest.raises(UserError, match=r"c\.txt is a pipe, socket or device"):
            read_lines(tmp_path / path, FRACTIONS, "utf-8")
    with pytest.raises(UserError, match=r"c\.txt is a pipe, socket or device, not a manifest"):
        read_manifest(tmp_path / "texts" / "c.txt", "tokens", FRACTIONS, "utf-8")
    (tmp_path / "nul.txt").write_bytes(b"one\ntw\0o\n")
    with pytest.raises(UserError, match=r"nul\.txt is not utf-8 text \(a null character in line 2\)"):
        read_lines(tmp_path / "nul.txt", FRACTIONS, "utf-8")


def test_lines_of_a_file_or_folder(tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "b.txt").write_text("three\n\n  \nfour\n")
    (tmp_path / "a.txt").write_text("one\r\ntwo", newline="")
    corpus = read_lines(tmp_path, FRACTIONS, "utf-8")
    found = {text.text: text.where for text in every(corpus)}
    assert set(found) == {"one", "two", "three", "four"} and found["four"].endswith("b.txt, line 4")
    (tmp_path / "a.txt").write_bytes("gr\u00fc\u00dfe\n".encode("latin-1"))
    with pytest.raises(UserError, match=r"a.txt is not utf-8 text \(byte 2\)"):
        read_lines(tmp_path, FRACTIONS, "utf-8")
    assert "grüße" in {text.text for text in every(read_lines(tmp_path, FRACTIONS, "latin-1"))}


def hub_data(monkeypatch, rows, label=None, **others):
    """The package `datasets`, as far as it is used, with one data set of these rows."""

    class ClassLabel:
        def int2str(self, number):
            return ["no", "yes"][number]

    class Split(list):
        features = {"text": "string", "label": label or ClassLabel(), "other": "string"}

    package = SimpleNamespace(
        load_dataset=lambda name: {name: Split(part) for name, part in {"train": rows, **others}.items()},
        ClassLabel=ClassLabel,
        exceptions=SimpleNamespace(DatasetsError=OSError),
    )
    monkeypatch.setitem(sys.modules, "datasets", package)


ROWS = [{"text": f"one two {i}", "label": i % 2, "other": [i]} for i in range(8)]


def test_a_hugging_face_data_set_is_read_whole(monkeypatch):
    hub_data(monkeypatch, ROWS)
    corpus = read_huggingface("a/b", "classes", FRACTIONS, ("text", "label"))
    assert corpus.labels == ("no", "yes") and [len(part) for part in corpus.parts().values()] == [4, 2, 2]


def test_the_splits_of_a_hugging_face_data_set_are_known_by_their_names(monkeypatch):
    hub_data(monkeypatch, ROWS, dev=ROWS[:2], unsupervised=ROWS[:1])
    corpus = read_huggingface("a/b", "classes", FRACTIONS, ("text", "label"))
    assert [len(part) for part in corpus.parts().values()] == [6, 2, 2]
    assert corpus.validation[0].where == "a/b, dev row 1" and "Without a test split" in corpus.note
    hub_data(monkeypatch, ROWS, validation=ROWS[:2], Testing=ROWS[2:])
    corpus = read_huggingface("a/b", "tokens", FRACTIONS, ("text", "label"))
    assert [len(part) for part in corpus.parts().values()] == [8, 2, 6]
    monkeypatch.setattr(sys.modules["datasets"], "load_dataset", lambda name: {"test": ROWS})
    with pytest.raises(UserError, match="has no split 'train'; its splits are: test"):
        read_huggingface("a/b", "tokens", FRACTIONS, ("text", "label"))


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
        read_huggingface("a/b", "classes", FRACTIONS, fields)


@pytest.mark.parametrize("name", ["list.csv", "list.jsonl"])
def test_lines_may_come_as_a_list_without_labels(name, tmp_path):
    texts = [f'"text {n}", of\ntwo lines' for n in range(20)]
    if name == "list.csv":
        quoted = [text.replace('"', '""') for text in texts]
        (tmp_path / name).write_text("number,text\n" + "".join(f'{n},"{text}"\n' for n, text in enumerate(quoted)))
    else:
        (tmp_path / name).write_text("\n".join(json.dumps({"text": text}) for text in texts))
    corpus = read_lines(tmp_path / name, FRACTIONS, "utf-8")
    assert sorted(text.text for text in every(corpus)) == sorted(texts) and corpus.labels == ()
    (tmp_path / "list.csv").write_text("title\na\n")
    with pytest.raises(UserError, match=r"has no column 'text'; its columns are: title"):
        read_lines(tmp_path / "list.csv", FRACTIONS, "utf-8")
