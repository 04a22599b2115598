"""Manifests that cannot be read: the sentence that says what is wrong, and in which row."""

import json
import os
import threading
from pathlib import Path

import pytest
from samplefiles import TABLE, listed, refused

from core.data import read_files
from core.data.dataset import SplitFractions


@pytest.mark.parametrize(
    "name, content, words",
    [
        ("list.csv", "", ["list.csv has no rows"]),
        ("list.csv", "path,label\n", ["list.csv has no rows"]),
        ("list.csv", "path,label\n\n , \n", ["list.csv has no rows"]),
        ("list.csv", "a.png,cat\nb.png,dog\n", ["no column 'path'; its columns are: a.png, cat"]),
        ("list.csv", "path,label,Label\na.png,cat,dog\n", ["has 2 columns 'label'"]),
        ("list.csv", "path,label\na.png,cat\npath,label\nb.png,dog\n", ["row 2 repeats the header"]),
        ("list.csv", "path,label\na.png\n", ["row 1 has no 'label'"]),
        ("list.csv", "path,label\na.png, \n", ["row 1 has no 'label'"]),
        ("list.csv", "path,label\na.png,cat,dog\n", ["row 1 has more fields than the header", "commas"]),
        ("list.csv", "path;label\na.png;cat;dog\n", ["row 1 has more fields than the header", "semicolons"]),
        ("list.csv", "path,label\n\n\na.png,cat\nb.png,\n", ["row 2 (line 5) has no 'label'"]),
        ("list.csv", 'path,label\na.png,"cat\nb.png,dog\n', ["row 1, which begins in line 2,", "never closed"]),
        ("list.csv", 'path,"label\na.png,cat\n', ["the header, which begins in line 1,", "never closed"]),
        (
            "list.csv",
            'path,label\na.png,cat\nb.png,"dog\nc d.png,"cat"\n',
            ["row 2, which begins in line 3,", "not CSV"],
        ),
        ("list.csv", 'path,label\na.png,"cat\nb.png,dog"\n', ["row 1: 'label' has a line break"]),
        ("list.csv", "path,label\na.png,cat\nb.png,c\0t\n", ["null character in line 3"]),
        ("list.csv", "path,label\na.png,cat\nb.png,c\x07t\n", ["row 2: 'label' has a line break or another control"]),
        ("list.csv", TABLE.encode("utf-16-le"), ["list.csv is not utf-8 text", "save it as UTF-8", "--data.encoding"]),
        ("list.csv", TABLE.encode("latin-1"), ["list.csv is not utf-8 text (byte", "save it as UTF-8"]),
        ("list.csv", "path,label\na.png,cat\nz.png,dog\n", ["row 2: there is no file z.png"]),
        ("list.csv", "path,label\na.png,cat\n/z/z.png,dog\n", ["row 2: there is no file /z/z.png"]),
        ("list.csv", "path,label\na.png,cat\n.,dog\n", ["row 2: . is a directory, not a file"]),
        ("list.csv", "path,label\na.png,cat\n/dev/zero,dog\n", ["row 2: /dev/zero is a pipe, socket or device"]),
        ("list.csv", "path,label\na.png,cat\nempty.png,dog\n", ["row 2: empty.png is an empty file"]),
        ("list.csv", "path,label\na.png,cat\nb.png,cat\n", ["1 class: at least two"]),
        ("list.csv", "path,label\na.png,cat\nb.png,dog\n", ["has a single sample"]),
        (
            "list.csv",
            "path,label,split\na.png,cat,test\nb.png,dog,test\n",
            ["no rows to train on: all are for testing"],
        ),
        (
            "list.csv",
            "path,label,split\na.png,cat,dev\nb.png,dog,val\n",
            ["no rows to train on: all are for validation"],
        ),
        ("list.csv", "path,label,split\na.png,cat,0\nb.png,dog,train\n", ["row 1: split is '0', but must be"]),
        (
            "list.csv",
            "path,label,split\na.png,cat,train\nb.png,dog,train\n./a.png,cat,test\n",
            ["list.csv, row 1 (a.png) and list.csv, row 3 (a.png) are the same file, once to train on and once to"],
        ),
        (
            "list.csv",
            "path,label,split\na.png,cat,train\nb.png,dog,train\nlink.png,dog,train\né.png,dog,test\n",
            ["row 1 (a.png) and list.csv, row 3 (link.png) are the same file under different labels"],
        ),
        ("list.jsonl", '{"path": "a.png", "label": "cat"}\n{"path": \n', ["list.jsonl, row 2 is not JSON"]),
        ("list.jsonl", '{"path": "a.png", "label": "cat",}\n', ["row 1 is not JSON"]),
        ("list.jsonl", '[\n{"path": "a.png", "label": "cat"}\n]\n', ["is a JSON array: write each"]),
        ("list.jsonl", '{"path": "a.png", "label": "cat"}\n\n3\n', ["row 2 (line 3) is not a JSON object"]),
        ("list.jsonl", '{"path": "a.png", "label": ["cat"]}\n', ["row 1: 'label' is a list, but must be"]),
        ("list.jsonl", '{"path": "a.png", "label": {"cat": 1}}\n', ["row 1: 'label' is an object, but must be"]),
        ("list.jsonl", '{"path": "a.png", "label": "[\'cat\']"}\n', ["row 1: 'label' is a list written as text"]),
        (
            "list.csv",
            "path,label\na.png,\"['cat', 'dog']\"\n",
            ["row 1: 'label' is a list written as text", "semicolons"],
        ),
        ("list.csv", 'path,label\na.png,"cat" big\n', ["row 1, which begins in line 2,", "inside a field twice"]),
        ("list.jsonl", '{"path": "a.png", "label": null}\n', ["row 1 has no 'label'"]),
        ("list.jsonl", '{"path": "a.png", "label": NaN}\n', ["row 1 is not JSON", "NaN"]),
        ("list.jsonl", '{"path": "a.png", "label": 1e999}\n', ["row 1: 'label' is not a finite number"]),
        ("list.jsonl", '{"path": "a.png", "label": "a", "label": "b"}\n', ["row 1", "'label' is there twice"]),
        ("list.jsonl", '{"path": "a.png", "label": "a", "Label": "b"}\n', ["row 1 has two values of 'label'"]),
        (
            "list.jsonl",
            '{"path": "a.png", "label": "\\ud800"}\n',
            ["row 1: 'label' has a line break or another control"],
        ),
        (
            "list.jsonl",
            '{"path": "a\\u0000.png", "label": "x"}\n',
            ["row 1: 'path' has a line break or another control"],
        ),
        ("list.jsonl", '{"path": "a.png", "label": ' + "9" * 5000 + "}\n", ["row 1 is not JSON"]),
        ("list.jsonl", '{"path": "a.png", "label": ' + "[" * 100_000 + "}\n", ["row 1 is not JSON"]),
        ("list.jsonl", "path,label\na.png,cat\n", ["row 1 is not JSON"]),
        ("list.json", "[]", ["list.json: a manifest is a .csv, .tsv, .jsonl or .ndjson file"]),
        ("list", TABLE, ["list: a manifest is a .csv, .tsv"]),
    ],
)
def test_what_is_wrong_in_a_manifest_is_said_with_its_row(files, name, content, words):
    Path("empty.png").touch()
    Path("link.png").symlink_to("a.png")
    refused(lambda: listed(content, name), *words)


def test_lists_that_cannot_be_labels(files):
    for label, words in (
        ([], "row 1 has no 'label'"),
        (["a;b"], "row 1: 'a;b' cannot be one of several"),
        (["a", ""], "row 1: '' cannot be one of several"),
        ([["a"]], "row 1: 'label' is a list"),
        (";", "row 1 has no 'label'"),
    ):
        line = json.dumps({"path": "a.png", "label": label})
        refused(lambda line=line: listed(line, "list.jsonl", kind="classes"), words)


def test_a_manifest_that_is_no_file():
    threads = threading.active_count()
    os.mkfifo("pipe.csv")
    Path("folder.csv").mkdir()
    for name, words in (
        ("pipe.csv", "pipe.csv is a pipe, socket or device, not a manifest"),
        ("folder.csv", "folder.csv is a directory, not a manifest"),
        ("none.csv", "There is no manifest none.csv"),
        ("/proc/self/mem", "a manifest is a .csv"),
    ):
        refused(lambda name=name: read_files(Path(name), SplitFractions()), words)
    assert threading.active_count() == threads


def test_classes_of_one_file_cannot_be_split(files):
    refused(lambda: listed("path,label\n" + "a.png,cat\nb.png,dog\n" * 4), "each group has all samples of a class")


def test_embedded_line_breaks_do_not_shift_the_row(files):
    table = 'path,note,label\na.png,"one\n\ntwo",cat\nb.png,"x",dog\nz.png,"",dog\n'
    refused(lambda: listed(table), "list.csv, row 3 (line 6): there is no file z.png")
