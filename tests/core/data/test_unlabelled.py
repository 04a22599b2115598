"""Files without labels: what of a folder or a manifest is read, and what is never trained on."""

import os
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
from samplefiles import SUFFIXES, folder, names, refused, touch

from core import UserError
from core.data import ShardFiles, UnlabelledFiles, make_splits
from core.experiments.shard import Arguments, shard


def read(path="root", **options):
    return UnlabelledFiles(path=Path(path), **options).unlabelled(SUFFIXES)


def listed(*rows, head="path"):
    Path("list.csv").write_text("\n".join((head, *rows)))
    return read("list.csv")


def found(data) -> list[set[str]]:
    """The files to train on, and those to validate on."""
    assert data.test == data.validation and data.labels == ()
    assert {sample.label for part in data.parts().values() for sample in part} == {0}
    parts = [set(names(part)) for part in (data.train, data.validation)]
    assert not parts[0] & parts[1]
    return parts


def test_files_are_found_at_any_depth_with_and_without_classes():
    touch(*(f"root/{number}.png" for number in range(12)), "root/list.txt", "root/__MACOSX/0.png", "root/.0.png")
    folder(count=4)
    touch("root/a/b/c.JPG", "root/train/cat/0.png", "root/train/1.png")
    data = read(validation_fraction=0.25)
    train, validation = found(data)
    assert len(train) == 17 and len(validation) == 6
    assert {"root/a/b/c.JPG", "root/train/1.png", "root/cat/0.png"} < train | validation
    assert data.note == (
        "25 % of the samples were held out for validation, the same in every run; there is no test split, and the last "
        "evaluation is of the validation split, too."
    )
    assert read(validation_fraction=0.25) == data


def test_the_test_part_of_a_folder_is_left_alone():
    folder("root/train", count=5)
    folder("root/Testing", start=5)
    touch("root/train/loose.png", "root/documents/read.me")
    data = read()
    train, validation = found(data)
    assert len(train) == 9 and len(validation) == 2
    assert {Path(name).parts[1] for name in train | validation} == {"train"}
    assert data.note.endswith("The data's own test split, 8 files, is not used.")
    folder("root/val", start=9)
    data = read()
    assert [len(part) for part in found(data)] == [11, 8]
    assert data.note.startswith("The validation split is the data's own; there is no test split")


def test_the_test_part_of_a_manifest_is_left_alone():
    folder(count=6)
    rows = [f"root/{name}/{n}.png,{'test' if n > 3 else 'train'},," for name in ("cat", "dog") for n in range(6)]
    data = listed(*rows, head="path,split,label,other")
    train, validation = found(data)
    assert len(train) == 7 and len(validation) == 1
    assert all(int(Path(name).stem) <= 3 for name in train | validation)
    assert data.note.endswith("The data's own test split, 4 files, is not used.")


@pytest.mark.parametrize("column", ["group", "speaker"])
def test_groups_of_a_manifest_are_whole(column):
    folder(count=12)
    Path("list.csv").write_text(
        "\n".join([f"path,{column}", *(f"root/cat/{n}.png,{n // 3}\nroot/dog/{n}.png,{n // 3}" for n in range(12))])
    )
    train, validation = found(read("list.csv", group="" if column == "group" else column))
    groups = [{int(Path(name).stem) // 3 for name in part} for part in (train, validation)]
    assert len(groups[1]) == 1 and len(groups[0]) == 3 and not groups[0] & groups[1]


def test_paths_that_lead_to_one_file_are_in_one_part():
    touch(*(f"root/{number}.png" for number in range(20)))
    for number in range(20):
        os.link(f"root/{number}.png", f"root/link {number}.png")
    train, validation = found(read())
    assert len(train) == 36 and {name.replace("link ", "") for name in validation} <= validation


def test_samples_are_named_for_the_check_of_a_resumed_run():
    folder()
    options = UnlabelledFiles(path=Path("root"))

    class Part:
        def __init__(self, samples):
            self.samples = samples

    named = options.named_samples(options.unlabelled(SUFFIXES).map(Part))
    assert set(named) == {"train", "validation"} and {label for part in named.values() for _, label in part} == {""}
    assert sorted(name for part in named.values() for name, _ in part) == sorted(
        f"{label}/{number}.png" for label in ("cat", "dog") for number in range(4)
    )


@pytest.mark.parametrize(
    "tree, words",
    [
        ([], ["There is no root: --data.path names a folder"]),
        (["list.txt"], ["root has no files to train on (.jpg, .png): at least two"]),
        (["0.png"], ["root has one file to train on", "at least two"]),
        (["train/0.png", "test/1.png"], ["root has one file to train on"]),
        (["test/0.png", "test/1.png"], ["root has a directory test, but none named train"]),
        (["train/0.png", "val/1.png", "more/2.png"], ["root mixes a split (val) with more", "the directory train"]),
        (["train/0.png", "test/1.png", "2.png"], ["root mixes a split (test) with 2.png"]),
        (["test/0.png", "more/1.png"], ["root mixes a split (test) with more"]),
        (["all/train/0.png", "all/test/1.png"], ["root/all holds a split of its own"]),
        (["train/a/train/0.png", "train/a/val/1.png", "test/2.png"], ["root/train/a holds a split of its own"]),
        (["training_set/cat/0.png", "test_set/cat/1.png"], ["the directories training_set and test_set"]),
    ],
)
def test_a_folder_that_cannot_be_understood(tree, words):
    touch(*(f"root/{name}" for name in tree))
    refused(read, *words)


def test_files_that_cannot_be_read():
    touch("root/0.png", "root/1.png")
    Path("root/2.png").touch()
    refused(read, "root/2.png is an empty file")
    refused(lambda: listed("root/0.png", "root/9.png"), "list.csv, row 2: there is no file root/9.png")
    refused(lambda: listed("a", head="file"), "list.csv has no column 'path'; its columns are: file")
    refused(lambda: read("root/0.png"), "root/0.png: a manifest is a .csv")
    rows = ("root/0.png,train,a", "root/1.png,test,a")
    refused(lambda: listed(*rows, head="path,split,group"), "The group 'a' is torn")
    refused(lambda: listed("root/0.png,train", "root/0.png,test", head="path,split"), "the same file, once to train")


def test_splits_without_a_test_split():
    data = make_splits(range(10), classes=lambda n: None, test_fraction=None, validation_fraction=0.3)
    assert len(data.train) == 7 and data.test == data.validation and {*data.train, *data.test} == {*range(10)}
    data = make_splits(range(10), test=range(10, 13), classes=lambda n: None, test_fraction=None)
    assert data.test == [10, 11, 12] and len(data.validation) == 1


@pytest.mark.parametrize("labelled", [False, True])
def test_shards_are_read_as_the_files_are(tmp_path, labelled):
    folder = tmp_path / "files"
    for number in range(12):
        file = folder / ("ab"[number % 2] if labelled else "deep/er") / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(bytes([number]))
    target = "classes" if labelled else "none"
    shard(Arguments(source=folder, shards=tmp_path / "shards", samples=3, target=target))
    options = UnlabelledFiles(path=tmp_path / "shards")
    found = options.unlabelled(SUFFIXES)
    read = {split: [(path.read_bytes(), label) for path, label in part] for split, part in found.parts().items()}
    assert read["test"] == read["validation"] and {label for part in read.values() for _, label in part} == {0}
    whole = {bytes([number]) for number in range(12)}
    unused = "The data's own test split, " in found.note
    assert unused == labelled and (len(read["train"] + read["validation"]) < 12) == labelled
    if not labelled:
        assert {content for content, _ in read["train"] + read["validation"]} == whole
        plain = UnlabelledFiles(path=folder).unlabelled(SUFFIXES)
        assert read["validation"] == [(path.read_bytes(), 0) for path, _ in plain.validation]
    with pytest.raises(UserError, match="lists no shards to test on") if not labelled else nullcontext():
        ShardFiles(path=tmp_path / "shards").read_files(SUFFIXES)
    assert [*options.named_samples(found.map(lambda part: SimpleNamespace(samples=part)))] == ["train", "validation"]
