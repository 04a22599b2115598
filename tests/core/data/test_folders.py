"""Folders as people have them: what is read of them, and the sentence for what cannot be read."""

import json
import os
import unicodedata
from collections import Counter
from pathlib import Path

import pytest
from samplefiles import every, folder, names, read, refused, touch


@pytest.mark.parametrize("train", ["train", "Training", "TRAIN"])
@pytest.mark.parametrize("held_out", ["test", "Testing", "val", "valid", "VALIDATION", "dev"])
def test_directories_of_a_split_are_known_by_their_names(train, held_out):
    folder(f"root/{train}")
    folder(f"root/{held_out}", start=4)
    touch("root/documents/read.me", "root/list.txt")
    data = read()
    assert data.labels == ("cat", "dog")
    own, cut = data.validation, data.test  # what is missing is cut from the training files
    if held_out.lower().startswith("test"):
        own, cut = cut, own
    assert {Path(name).parts[1] for name in names(own)} == {held_out} and len(own) == 8
    for part, size in ((data.train, 6), (cut, 2)):
        assert {Path(name).parts[1] for name in names(part)} == {train} and len(part) == size


def test_three_directories_are_the_three_splits():
    for number, part in enumerate(("train", "val", "test")):
        folder(f"root/{part}", start=4 * number)
    data = read()
    assert [{Path(name).parts[1] for name in names(part)} for part in data.parts().values()] == [
        {"train"},
        {"val"},
        {"test"},
    ]
    assert [len(part) for part in data.parts().values()] == [8, 8, 8]


def test_a_training_directory_alone_is_split():
    folder("root/train")
    data = read()
    assert data.labels == ("cat", "dog") and [len(part) for part in data.parts().values()] == [4, 2, 2]


def test_a_class_may_be_named_train():
    """It holds files itself: a vehicle, as in CIFAR-100."""
    folder(classes=("bus", "train"))
    assert read().labels == ("bus", "train")


@pytest.mark.parametrize("first, second", [("bullet train/red", "test tube/glass"), ("trains/day", "valves/day")])
def test_classes_may_be_named_after_training_and_tests(first, second):
    touch(*(f"root/{path}/{number}.png" for path in (first, second) for number in (0, 1, 2)))
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
        (["train/cat/0.png", "Train/cat/0.png", "test/cat/1.png"], ["two directories for one split, Train and train"]),
        (
            ["train/a/0.png", "train/b/1.png", "val/a/2.png", "dev/a/3.png"],
            ["two directories for one split, dev and val"],
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
    touch("root/cat/9.PNG", "root/cat/x.png/8.Jpg", "elsewhere/a.png", "elsewhere/b.png", "elsewhere/c.png", "file")
    Path("root/dog/7.png").symlink_to(Path("file").absolute())
    Path("root/linked").symlink_to(Path("elsewhere").absolute())
    data = read()
    assert data.labels == ("cat", "dog", "linked")
    found = set(names(every(data)))
    assert {"root/cat/9.PNG", "root/cat/x.png/8.Jpg", "root/dog/7.png", "root/linked/a.png"} <= found
    assert len(found) == 8 + 6


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
    for number, split in enumerate(("train", "val", "test")):
        folder(f"root/{split}", start=4 * number)
    for name in ("train/cat/0.png", "train/cat/1.png", "test/dog/0.png"):
        Path(f"root/{name}").write_bytes(name.encode())
    Path("root/test/cat/0.png").write_bytes(b"train/cat/0.png")
    Path("root/test/cat/1.png").write_bytes(b"another picture")
    with pytest.warns(UserWarning, match="1 of 11 files to test on .* root/train/cat/0.png and root/test/cat/0.png"):
        read()
    Path("root/test/cat/0.png").rename("root/val/cat/0.png")
    with pytest.warns(UserWarning, match="1 of 9 files to validate on .* root/train/cat/0.png and root/val/cat/0.png"):
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
    assert Counter(data.labels[sample.label] for sample in (*data.train, *data.validation))["küche"] == 4
