"""Folders and manifests as people have them: what is read of them, and the sentence for what cannot be read."""

import json
import os
import threading
import unicodedata
import warnings
from collections import Counter
from itertools import product
from pathlib import Path

import pytest

from core import UserError
from core.data.splits import few_per_class, manifest_rows, read_folder, read_manifest, stratified_split

SUFFIXES = (".png", ".jpg")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def touch(*names: str) -> None:
    """Files that are not empty."""
    for name in names:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_bytes(b"x")


def folder(root: str = "root", classes=("cat", "dog"), count: int = 4, start: int = 0) -> Path:
    touch(*(f"{root}/{name}/{number}.png" for name in classes for number in range(start, start + count)))
    return Path(root)


def read(root: Path = Path("root"), fraction: float = 0.25):
    return read_folder(root, SUFFIXES, fraction)


def names(samples) -> list[str]:
    return [str(sample.path) for sample in samples]


def refused(work, *words: str) -> str:
    """The message of the error that is raised: one sentence that contains these words."""
    with pytest.raises(UserError) as error:
        work()
    said = str(error.value)
    assert all(word in said for word in words), said
    assert said.endswith(".") and len(said.splitlines()) == 1 and said.isprintable(), said
    return said


# --- Folders --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("train", ["train", "Training", "TRAIN"])
@pytest.mark.parametrize("held_out", ["test", "Testing", "val", "valid", "VALIDATION", "dev"])
def test_directories_of_a_split_are_known_by_their_names(train, held_out):
    folder(f"root/{train}")
    folder(f"root/{held_out}", start=4)
    touch("root/documents/read.me", "root/list.txt")
    data = read()
    assert data.labels == ("cat", "dog")
    assert {Path(name).parts[1] for name in names(data.train)} == {train} and len(data.train) == 8
    assert {Path(name).parts[1] for name in names(data.test)} == {held_out} and len(data.test) == 8


def test_of_validation_and_test_the_test_part_is_held_out():
    for number, part in enumerate(("train", "val", "test")):
        folder(f"root/{part}", start=4 * number)
    with pytest.warns(UserWarning, match=r"Held out are the files in root/test; those in root/val are not used"):
        data = read()
    assert {Path(name).parts[1] for name in names(data.test)} == {"test"} and len(data.train) == 8


def test_a_training_part_alone_is_split():
    folder("root/train")
    data = read()
    assert data.labels == ("cat", "dog") and (len(data.train), len(data.test)) == (6, 2)


def test_a_class_may_be_named_train():
    """It holds files itself: a vehicle, as in CIFAR-100."""
    folder(classes=("bus", "train"))
    assert read().labels == ("bus", "train")


@pytest.mark.parametrize("first, second", [("bullet train/red", "test tube/glass"), ("trains/day", "valves/day")])
def test_classes_may_be_named_after_training_and_tests(first, second):
    touch(*(f"root/{path}/{number}.png" for path in (first, second) for number in (0, 1)))
    assert read().labels == (first.split("/")[0], second.split("/")[0])


@pytest.mark.parametrize(
    "tree, words",
    [
        (["train/cat/0.png", "val/cat/1.png", "dog/2.png"], ["mixes a split (train) with classes (dog)"]),
        (["train/cat/0.png", "dog/2.png", "cat/3.png"], ["mixes a split (train) with classes (cat)"]),
        (["test/0.png", "dog/2.png", "cat/3.png"], ["mixes a split (test) with classes (cat)"]),
        (["train/0.png", "val/1.png"], ["train holds no directory per class", "train/<class>/"]),
        (["train/cat/0.png", "train/dog/0.png", "test/1.png"], ["test holds no directory per class"]),
        (["test/cat/0.png", "test/dog/1.png"], ["has a directory test, but none named train"]),
        (["train/cat/0.png", "Train/cat/0.png", "test/cat/1.png"], ["two directories for one part, Train and train"]),
        (
            ["train/a/0.png", "train/b/1.png", "val/a/2.png", "dev/a/3.png"],
            ["two directories for one part, dev and val"],
        ),
        (
            ["train/a/0.png", "train/b/1.png", "test/c/2.png", "test/d/3.png"],
            ["root/test: class 'c', 'd' has no directory in root/train"],
        ),
        (["cat/train/0.png", "cat/test/1.png", "dog/train/0.png"], ["root/cat holds a split of its own"]),
        (["pictures/train/cat/0.png", "pictures/val/cat/1.png"], ["root/pictures holds a split of its own"]),
        (["training_set/cat/0.png", "test_set/cat/1.png"], ["the directories training_set and test_set", "split"]),
        (["seg_train/a/0.png", "seg_test/a/1.png", "seg_pred/2.png"], ["the directories seg_train and seg_test"]),
        (["train2017/a/0.png", "val2017/a/1.png"], ["the directories train2017 and val2017"]),
        (["cat/0.png", "dog/read.me"], ["root/dog is a class without files"]),
        (["cat/0.png", " /0.png"], ["a class directory whose name is blank"]),
        (["cat/0.png"], ["1 class: at least two"]),
        (["0.png"], ["0 classes: at least two"]),
    ],
)
def test_a_folder_that_cannot_be_understood(tree, words):
    touch(*(f"root/{name}" for name in tree))
    refused(read, *words)


def test_a_path_that_is_no_folder():
    touch("file")
    for path in ("file", "nowhere", "file/inside", "/proc/self/environ"):
        refused(lambda path=path: read(Path(path)), f"{path} is not a directory")


def test_what_programs_leave_behind_is_no_sample():
    root = folder()
    plain = read()
    copies = [f"{root}/{at}/{name}" for at in (".", "cat", "cat/deep") for name in ("._0.png", "~$0.png", ".0.jpg")]
    left = (".ipynb_checkpoints", "__MACOSX", "@eaDir", "lost+found", "$RECYCLE.BIN", "#recycle", ".git", ".Trash")
    left += ("#snapshot", "~snapshot", "@Recently-Snapshot", "Network Trash Folder", "Temporary Items", "RECYCLER")
    copies += [f"{root}/{at}/{name}/0-checkpoint.png" for at in (".", "cat", "dog/deep") for name in left]
    touch(*copies, f"{root}/Thumbs.db", f"{root}/cat/Thumbs.db", f"{root}/dog/desktop.ini", f"{root}/dog/.DS_Store")
    assert read() == plain


def test_files_are_found_in_either_case_in_directories_of_any_name_and_through_links():
    folder()
    touch("root/cat/9.PNG", "root/cat/x.png/8.Jpg", "elsewhere/a.png", "elsewhere/b.png", "file")
    Path("root/dog/7.png").symlink_to(Path("file").absolute())
    Path("root/linked").symlink_to(Path("elsewhere").absolute())
    data = read()
    assert data.labels == ("cat", "dog", "linked")
    found = set(names([*data.train, *data.test]))
    assert {"root/cat/9.PNG", "root/cat/x.png/8.Jpg", "root/dog/7.png", "root/linked/a.png"} <= found
    assert len(found) == 8 + 5


def test_links_that_lead_back_are_not_followed():
    folder()
    plain = read()
    Path("root/all").symlink_to(Path("root").absolute())
    Path("root/cat/again").symlink_to(Path("root/cat").absolute())
    Path("root/cat/up").symlink_to("..")
    Path("root/cat/loop").symlink_to("loop")
    assert read() == plain


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda path: path.write_bytes(b""), "root/cat/9.png is an empty file"),
        (lambda path: os.mkfifo(path), "root/cat/9.png is a pipe, socket or device"),
        (lambda path: path.symlink_to("/dev/zero"), "root/cat/9.png is a pipe, socket or device"),
        (lambda path: path.symlink_to("gone.png"), "There is no file root/cat/9.png"),
        (lambda path: path.symlink_to("9.png"), "root/cat/9.png cannot be read: Too many levels"),
        (lambda path: path.symlink_to("../dog/0.png"), "are the same file under different labels"),
    ],
    ids=["empty", "pipe", "device", "gone", "loop", "of another class"],
)
def test_a_file_that_cannot_be_a_sample_is_named(make, words):
    folder()
    make(Path("root/cat/9.png"))
    refused(read, words)


def test_a_directory_that_may_not_be_read(monkeypatch):
    """As a user without rights: for root there is no such thing."""
    folder()
    for path in (Path.cwd(), *Path.cwd().parents):
        if path.is_relative_to("/tmp") and path != Path("/tmp"):
            path.chmod(0o755)
    read()  # imports what it needs
    Path("root/cat").chmod(0)
    if (root := os.geteuid() == 0) is True:
        os.seteuid(65534)
    try:
        refused(read, "The directory root/cat cannot be read: Permission denied")
    finally:
        if root:
            os.seteuid(0)
        Path("root/cat").chmod(0o755)


def test_a_file_in_both_parts_is_a_leak():
    folder("root/train")
    folder("root/test", start=4)
    os.link("root/train/cat/0.png", "root/test/cat/9.png")
    refused(
        read, "root/train/cat/0.png and root/test/cat/9.png are the same file, once to train on and once to test on"
    )


def test_copies_in_both_parts_are_counted():
    folder("root/train")
    folder("root/test", start=4)
    for name in ("train/cat/0.png", "train/cat/1.png", "test/dog/0.png"):
        Path(f"root/{name}").write_bytes(name.encode())
    Path("root/test/cat/0.png").write_bytes(b"train/cat/0.png")
    Path("root/test/cat/1.png").write_bytes(b"another picture")
    with pytest.warns(UserWarning, match="1 of 11 files .* such as root/train/cat/0.png and root/test/cat/0.png"):
        read()


@pytest.mark.parametrize("at", ["root/bird", "root/cat/more"])
def test_a_link_to_a_directory_that_is_not_there_is_named(at):
    folder()
    Path(at).symlink_to(Path("unmounted").absolute())
    refused(read, f"{at} is a link to", "unmounted, which is not there")


def test_names_of_classes_can_be_written():
    """Bytes that are no UTF-8, line breaks; and the two ways that Unicode writes an umlaut are one."""
    odd = [os.fsdecode(b"caf\xe9"), "a\nb", "tab\there", "é" * 100, unicodedata.normalize("NFD", "küche"), " küche"]
    folder("root/train", odd, count=2)
    folder("root/test", [unicodedata.normalize("NFC", "küche"), odd[0]], count=2, start=2)
    data = read()
    assert data.labels == tuple(sorted([r"caf\xe9", r"a\nb", r"tab\there", "é" * 100, "küche"]))
    assert json.loads(json.dumps(data.labels).encode("utf-8")) == list(data.labels)
    assert [data.labels[sample.label] for sample in data.test] == [r"caf\xe9"] * 2 + ["küche"] * 2
    assert Counter(data.labels[sample.label] for sample in data.train)["küche"] == 4


# --- The split ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fraction", [0.01, 0.1, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("counts", [[2, 2], [2, 100], [2] * 50, [3, 40, 2, 2], [2, 2, 1000]])
def test_each_class_is_in_both_parts(fraction, counts):
    labels = [label for label, count in enumerate(counts) for _ in range(count)]
    train, test = stratified_split(labels, fraction)
    assert sorted(train + test) == list(range(len(labels)))
    assert train == sorted(train) and test == sorted(test)
    for part in (train, test):
        assert {labels[index] for index in part} == set(labels)


def test_one_sample_of_a_class_is_too_few():
    folder(classes=("cat",), count=5)
    folder(classes=("dog",), count=1)
    refused(read, "'dog' has a single file")


def test_more_per_class_than_there_are():
    samples = [(number, number % 2) for number in range(7)]
    assert few_per_class(samples, 1000) == samples and len(few_per_class(samples, 2)) == 4


# --- Manifests ------------------------------------------------------------------------------------------------------

ROWS = [("a.png", "cat"), ("b.png", "dog"), ("c d.png", "cat"), ("é.png", "dog")]
TABLE = "".join(f"{path},{label}\n" for path, label in [("path", "label"), *ROWS])


@pytest.fixture
def files():
    touch(*(path for path, _ in ROWS))


def listed(content: str | bytes, name: str = "list.csv", fraction: float = 0.5, **options):
    Path(name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_manifest(Path(name), fraction, **options)


def labelled(data) -> set[tuple[str, str]]:
    return {(str(sample.path), data.labels[sample.label]) for part in data[:2] for sample in part}


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
    touch(found, "cats/100%.png", "0.png", "1.png", "2.png")
    data = listed(f"path,label\n{written},x\n0.png,x\n1.png,y\n2.png,y\n")
    paths = [path for path, _ in labelled(data)]
    assert len(paths) == 4 and any(os.path.samefile(path, found) for path in paths)
    assert listed(f"path,label\n{Path(found).absolute()},x\n0.png,x\n1.png,y\n2.png,y\n").labels == ("x", "y")


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
    table = 'path;label\na.png;dog \nb.png;"cat; dog"\nc d.png;\'\né.png;2.0\n'.replace("'", "cat")
    lines = [("a.png", ["dog"]), ("b.png", ["cat", " dog"]), ("c d.png", "cat"), ("é.png", 2)]
    for content, name in (
        (table, "list.csv"),
        ("\n".join(json.dumps({"path": path, "label": label}) for path, label in lines), "list.jsonl"),
    ):
        data = listed(content.replace("2.0", "2"), name, multilabel=True)
        assert data.labels == ("2", "cat", "dog")
        found = {sample.path.name: {data.labels[n] for n in sample.label} for part in data[:2] for sample in part}
        assert found == {"a.png": {"dog"}, "b.png": {"cat", "dog"}, "c d.png": {"cat"}, "é.png": {"2"}}
    numbers = listed('path;label\na.png;1.0\nb.png;"1;2"\nc d.png;2.0\né.png;1\n', multilabel=True)
    assert numbers.labels == ("1", "2")


def test_labels_that_a_single_sample_has_are_trained_on():
    """Held out are only samples whose labels training knows."""
    touch(*(f"{number}.png" for number in range(20)))
    rows = "".join(
        f"{number}.png,common;only{number}\n" if number % 2 else f"{number}.png,common\n" for number in range(20)
    )
    data = listed("path,label\n" + rows, fraction=0.9, multilabel=True)
    learnt = {number for sample in data.train for number in sample.label}
    assert data.test and len(learnt) == len(data.labels) == 11 and len(data.train) + len(data.test) == 20
    refused(lambda: listed("path,label\n0.png,a;b\n", multilabel=True), "a single sample")
    refused(lambda: listed("path,label\n0.png,a\n1.png,b\n", multilabel=True), "Too few samples share their labels")


@pytest.mark.parametrize("train", ["train", "Training", " TRAIN "])
@pytest.mark.parametrize("held_out", ["test", "TESTING", "val", "valid", "Validation", "dev"])
def test_a_split_is_known_by_its_names(files, train, held_out):
    table = TABLE.replace("label\n", "label,split\n").replace(".png,cat\n", f".png,cat,{train}\n")
    data = listed(
        table.replace("b.png,dog\n", f"b.png,dog,{train}\n").replace("é.png,dog\n", f"é.png,dog,{held_out}\n")
    )
    assert names(data.test) == ["é.png"] and len(data.train) == 3


def test_what_a_split_leaves_open_is_said(files):
    head = "path,label,split\na.png,cat,train\nb.png,dog,train\n"
    with pytest.warns(UserWarning, match=r"held out are the rows for testing; the 1 for validation are not used"):
        data = listed(head + "c d.png,cat,val\né.png,dog,test\n")
    assert names(data.test) == ["é.png"] and len(data.train) == 2
    with pytest.warns(UserWarning, match=r"1 rows of list.csv name no split and are trained on: the first is .*row 3"):
        data = listed(head + "c d.png,cat,\né.png,dog,test\n")
    assert names(data.test) == ["é.png"] and len(data.train) == 3
    with warnings.catch_warnings(action="error"):
        assert len(listed(TABLE).test) == 2


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
        ("list.csv", "path,label\na.png,cat\nb.png,dog\n", ["has a single file"]),
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
        refused(lambda line=line: listed(line, "list.jsonl", multilabel=True), words)


def test_a_manifest_that_is_no_file():
    os.mkfifo("pipe.csv")
    Path("folder.csv").mkdir()
    for name, words in (
        ("pipe.csv", "pipe.csv is a pipe, socket or device, not a manifest"),
        ("folder.csv", "folder.csv is a directory, not a manifest"),
        ("none.csv", "There is no manifest none.csv"),
        ("/proc/self/mem", "a manifest is a .csv"),
    ):
        refused(lambda name=name: read_manifest(Path(name), 0.2), words)
    assert threading.active_count() == 1


def test_a_file_listed_twice_is_in_one_part(files):
    rows = "path,label,split\na.png,cat,train\na.png,cat,train\nb.png,dog,train\nc d.png,cat,test\n"
    assert len(listed(rows).train) == 3
    refused(lambda: listed("path,label\n" + "a.png,cat\nb.png,dog\n" * 4), "are the same file, once to train on")


def test_embedded_line_breaks_do_not_shift_the_row(files):
    table = 'path,note,label\na.png,"one\n\ntwo",cat\nb.png,"x",dog\nz.png,"",dog\n'
    refused(lambda: listed(table), "list.csv, row 3 (line 6): there is no file z.png")


def test_a_field_may_be_of_any_length(tmp_path):
    Path("list.csv").write_text(f'text,label\n"{"word " * 60_000}",a\nb,b\n')
    rows = manifest_rows(Path("list.csv"), ["text", "label"])
    assert [len(row["text"]) for row in rows.values()] == [300_000, 1]
