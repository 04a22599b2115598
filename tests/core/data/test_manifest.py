"""Manifests as people have them: what is read of them."""

import json
import os
import unicodedata
import warnings
from itertools import product
from pathlib import Path

import pytest
from samplefiles import ROWS, TABLE, every, listed, names, refused, touch

from core.data.manifest import manifest_rows


def labelled(data) -> set[tuple[str, str]]:
    return {(str(sample.path), data.labels[sample.label]) for sample in every(data)}


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("name", ["list.csv", "LIST.CSV", "list.tsv"])
def test_tables_of_any_program(files, name, delimiter):
    for ending, encoding in product(["\n", "\r\n", "\r"], ["utf-8", "utf-8-sig", "utf-16", "utf-32"]):
        text = TABLE.replace(",", delimiter).replace("\n", ending)
        assert labelled(listed(text.encode(encoding), name)) == set(ROWS)


@pytest.mark.parametrize("name", ["list.jsonl", "LIST.JSONL", "list.ndjson"])
def test_json_lines_of_any_program(files, name):
    lines = [json.dumps({"Path ": path, "LABEL": label, "more": {"a": [1]}, "none": None}) for path, label in ROWS]
    for ending, encoding in product(["\n", "\r\n", "\r", "\n\n", " \n"], ["utf-8", "utf-8-sig", "utf-16"]):
        assert labelled(listed(ending.join(lines).encode(encoding), name)) == set(ROWS)


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace("path,label", " Path , LABEL"),
        lambda text: text.replace("path,label", '"path","label",'),
        lambda text: text.replace("cat", " cat ").replace("dog", "dog\u00a0"),
        lambda text: text.replace("cat\n", "cat\n\n\n").replace("path", "\n\npath"),
        lambda text: text.replace("cat\n", "cat\n,\n").replace("dog\n", "dog\n  \n"),
        lambda text: text.replace("cat\n", "cat,\n").replace("dog\n", "dog,,\n"),
        lambda text: (
            text.replace("path,label", "id,path,note,label,note").replace("\n", "\nx,")[:-2].replace(".png,", ".png,n,")
        ),
        lambda text: "sep=,\n" + text,
        lambda text: "sep=;\n" + text.replace(",", ";"),
        lambda text: text.replace("label", "label,split").replace("cat\n", "cat,\n").replace("dog\n", "dog\n"),
        lambda text: text.replace("cat", '"cat"').replace("a.png", ' "a.png"'),
    ],
    ids=[
        "case",
        "quotes",
        "blanks",
        "blank lines",
        "empty rows",
        "commas",
        "columns",
        "sep",
        "sep;",
        "split",
        "quoted",
    ],
)
def test_a_table_is_read_whatever_is_around_its_values(files, change):
    assert labelled(listed(change(TABLE))) == set(ROWS)


@pytest.mark.parametrize(
    "written, found",
    [
        ("cats\\a.png", "cats/a.png"),
        ("cats//./a.png", "cats/a.png"),
        ("cats/my%20cat.png", "cats/my cat.png"),
        (unicodedata.normalize("NFD", "cats/é.png"), unicodedata.normalize("NFC", "cats/é.png")),
        (unicodedata.normalize("NFC", "cats/ö.png"), unicodedata.normalize("NFD", "cats/ö.png")),
        ("~/cats/a.png", "cats/a.png"),
        ("cats/100%25.png", "cats/100%25.png"),
        ("cats/A\\b.png", "cats/A\\b.png"),
    ],
)
def test_the_file_is_found_however_its_name_is_written(written, found, monkeypatch):
    monkeypatch.setenv("HOME", os.getcwd())
    touch(found, "cats/100%.png", *(f"{number}.png" for number in range(5)))
    others = "0.png,x\n1.png,x\n2.png,y\n3.png,y\n4.png,y\n"
    data = listed(f"path,label\n{written},x\n{others}")
    paths = [path for path, _ in labelled(data)]
    assert len(paths) == 6 and any(os.path.samefile(path, found) for path in paths)
    assert listed(f"path,label\n{Path(found).absolute()},x\n{others}").labels == ("x", "y")


def test_numbers_truth_values_and_texts_are_classes_by_one_rule(files):
    def classes(*labels, name="list.jsonl"):
        lines = [json.dumps({"path": "a.png", "label": label}) for label in labels]
        Path(name).write_text("\n".join(lines))
        return [row["label"] for row in manifest_rows(Path(name), ["path", "label"]).values()]

    assert classes(1, 1.0, "1", "1.0", 10, 0, -0.0) == ["1", "1", "1", "1", "10", "0", "0"]
    assert classes(1.5, 1.0, "1.0", "v1.0") == ["1.5", "1", "1.0", "v1.0"]
    assert classes(True, False, "true", "False") == ["true", "false", "true", "False"]
    assert classes(2**63, 1e22, 0.1) == ["9223372036854775808", "1e+22", "0.1"]
    assert classes("007", "7") == ["007", "7"]
    assert classes("null", "NA", "nan", "None") == ["null", "NA", "nan", "None"]  # names like any other
    assert classes("é", "e\u0301") == ["é", "é"]
    assert classes("dog", "dog\u200b", "\ufeff dog", "dog\u00a0") == ["dog"] * 4
    for table, expected in (
        ("1\n1.0\n2.00\n", ["1", "1", "2"]),
        ("1.0\n1.10\n", ["1.0", "1.10"]),
        ("1.0\ncat\n", ["1.0", "cat"]),
    ):
        Path("list.csv").write_text("label\n" + table)
        assert [row["label"] for row in manifest_rows(Path("list.csv"), ["label"]).values()] == expected


def test_several_labels_in_a_list_or_by_semicolons(files):
    names = [f"{number}.png" for number in range(8)]
    touch(*names)
    table = 'path;label\na.png;dog \nb.png;"cat; dog"\nc d.png;cat\né.png;2.0\n'
    lines = [("a.png", ["dog"]), ("b.png", ["cat", " dog"]), ("c d.png", "cat"), ("é.png", 2)]
    expected = {"a.png": {"dog"}, "b.png": {"cat", "dog"}, "c d.png": {"cat"}, "é.png": {"2"}}
    for content, name in (
        (table.replace("2.0", "2") + "".join(f"{name};cat\n" for name in names), "list.csv"),
        (
            "\n".join(
                json.dumps({"path": path, "label": label}) for path, label in [*lines, *((n, "cat") for n in names)]
            ),
            "list.jsonl",
        ),
    ):
        data = listed(content, name, kind="classes")
        assert data.labels == ("2", "cat", "dog")
        found = {sample.path.name: {data.labels[n] for n in sample.label} for sample in every(data)}
        assert found == expected | {name: {"cat"} for name in names}
    rows = "".join(f"{name};1\n" for name in names)
    numbers = listed('path;label\na.png;1.0\nb.png;"1;2"\nc d.png;2.0\né.png;1\n' + rows, kind="classes")
    assert numbers.labels == ("1", "2")


def test_labels_that_a_single_sample_has_are_trained_on():
    """Held out are only samples whose labels training knows."""
    touch(*(f"{number}.png" for number in range(20)))
    rows = "".join(
        f"{number}.png,common;only{number}\n" if number % 2 else f"{number}.png,common\n" for number in range(20)
    )
    data = listed("path,label\n" + rows, fraction=0.5, kind="classes")
    learnt = {number for sample in data.train for number in sample.label}
    assert data.test and data.validation and len(learnt) == len(data.labels) == 11 and len(every(data)) == 20
    refused(lambda: listed("path,label\n0.png,a;b\n", kind="classes"), "a single sample")
    refused(lambda: listed("path,label\n0.png,a\n1.png,b\n", kind="classes"), "Too few samples share their labels")


@pytest.mark.parametrize("train", ["train", "Training", " TRAIN "])
@pytest.mark.parametrize("held_out", ["test", "TESTING", "val", "valid", "Validation", "dev"])
def test_a_split_is_known_by_its_names(files, train, held_out):
    table = TABLE.replace("label\n", "label,split\n").replace(".png,cat\n", f".png,cat,{train}\n")
    data = listed(
        table.replace("b.png,dog\n", f"b.png,dog,{train}\n").replace("é.png,dog\n", f"é.png,dog,{held_out}\n")
    )
    own, cut = data.validation, data.test
    if held_out.lower().startswith("test"):
        own, cut = cut, own
    assert names(own) == ["é.png"] and len(data.train) + len(cut) == 5 and cut


def test_what_a_split_leaves_open_is_said(files):
    head = "path,label,split\na.png,cat,train\nb.png,dog,train\n"
    with warnings.catch_warnings(action="error"):
        data = listed(head + "c d.png,cat,val\né.png,dog,test\n")
        assert len(listed(TABLE).test) == 3
    assert (names(data.validation), names(data.test)) == (["c d.png"], ["é.png"]) and len(data.train) == 2
    with pytest.warns(UserWarning, match=r"1 rows of list.csv name no split and are trained on: the first is .*row 3"):
        data = listed(head + "c d.png,cat,\né.png,dog,test\n")
    assert names(data.test) == ["é.png"] and len(data.train) + len(data.validation) == 3


def test_a_field_may_be_of_any_length(tmp_path):
    Path("list.csv").write_text(f'text,label\n"{"word " * 60_000}",a\nb,b\n')
    rows = manifest_rows(Path("list.csv"), ["text", "label"])
    assert [len(row["text"]) for row in rows.values()] == [300_000, 1]
