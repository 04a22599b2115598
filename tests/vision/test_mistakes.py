"""Mistakes in the training command: each gets one sentence, and leaves nothing behind."""

import os
from pathlib import Path

import pytest
from mistakes import Mistake, check_mistake
from small_runs import IMAGES

from vision.train import VISION

pytestmark = pytest.mark.usefixtures("elsewhere")


MISTAKES = {
    "no_path": Mistake(["folder"], "need --data.path"),
    "path_missing": Mistake(["folder", "--data.path", "nowhere"], "nowhere is not a directory"),
    "manifest_missing": Mistake(["manifest", "--data.path", "list.csv"], "no manifest list.csv"),
    "manifest_column": Mistake(
        ["manifest", "--data.path", "list.csv"],
        "list.csv has no column 'label'; its columns are: path, class",
        {"list.csv": "path,class\na.png,red\n"},
    ),
    "manifest_row": Mistake(
        ["manifest", "--data.path", "list.csv"],
        "list.csv, row 2 has no 'label'",
        {"list.csv": "path,label\nfolder/red/0.png,red\nfolder/red/1.png,\n"},
    ),
    "manifest_file": Mistake(
        ["manifest", "--data.path", "list.csv"],
        "row 2: there is no file folder/red/99.png",
        {"list.csv": "path,label\nfolder/red/0.png,red\nfolder/red/99.png,blue\n"},
    ),
    "manifest_json": Mistake(
        ["manifest", "--data.path", "list.jsonl"],
        "list.jsonl, row 2 is not JSON",
        {"list.jsonl": '{"path": "folder/red/0.png", "label": "red"}\n{"path": \n'},
    ),
    "manifest_split": Mistake(
        ["manifest", "--data.path", "list.csv"],
        "row 2: split is 'later', but must be 'train', 'val' or 'test'",
        {"list.csv": "path,label,split\nfolder/red/0.png,red,train\nfolder/blue/0.png,blue,later\n"},
    ),
    "manifest_unlearnt": Mistake(
        ["manifest", "--data.path", "list.csv"],
        "label 'blue' is only in the test split",
        {"list.csv": "path,label,split\nfolder/red/0.png,red,train\nfolder/blue/0.png,blue,test\n"},
    ),
    "image_size": Mistake(
        ["folder", "--data.path", "folder", *IMAGES, "--model.image-size", "9"], "choose 8 or 12 pixels"
    ),
    "heads": Mistake(
        ["folder", "--data.path", "folder", *IMAGES, "--model.heads", "3"], "16 is not divisible by 3 heads"
    ),
    "experiment": Mistake(["digit"], "no experiment 'digit': did you mean 'digits'"),
    "out_is_a_file": Mistake(["digits", "--out", "mine"], "mine is a file", {"mine": "text"}),
    "nothing_to_resume": Mistake(["digits", "--resume"], "runs/digits holds no run to resume"),
    "accumulation": Mistake(["digits", "--train.accumulate", "7"], "cannot be cut into 7 equal micro-batches"),
    "policy": Mistake(
        ["folder", "--data.path", "folder", *IMAGES, "--data.augment.policy", "magic"], "'magic' is not one that timm"
    ),
    "start_size": Mistake(["digits", "--data.augment.start-size", "9"], "start-size 9 must be at least 3, .* most 7"),
    "start_size_with_masks": Mistake(
        ["digits-mae", "--data.augment.start-size", "4"], "start-size is for training with labels: leave it out"
    ),
    "cache": Mistake(
        ["folder", "--data.path", "folder", *IMAGES, "--data.cache", "folder/cache"], "name a directory elsewhere"
    ),
    "dropout_of_a_lora": Mistake(["digits", "--lora.dropout", "1.5"], "--lora.dropout must be less than 1, not 1.5"),
    "start": Mistake(["digits", "--init", ""], "--init is empty"),
    "fraction": Mistake(["digits", "--data.test-fraction", "1.5"], "--data.test-fraction must be less than 1, not 1.5"),
}


def mistake_empty_class(images):
    (images / "green").mkdir()
    return ["folder", "--data.path", images], "green is a class without files"


def mistake_one_class(images):
    (images / "red").rename(images.parent / "red")
    return ["folder", "--data.path", images], "1 class: at least two are needed"


def mistake_single_file(images):
    for number in range(1, 10):
        (images / "red" / f"{number}.png").unlink()
    return ["folder", "--data.path", images], "'red' has a single sample"


def mistake_truncated_image(images):
    for path in (images / "red").iterdir():
        path.write_bytes(path.read_bytes()[:200])
    return ["folder", "--data.path", images, *IMAGES], r"red/\d.png cannot be read"


def mistake_truncated_image_in_a_worker(images):
    argv, words = mistake_truncated_image(images)
    return [*argv, "--train.workers", "1"], words


def mistake_not_an_image(images):
    for path in (images / "red").iterdir():
        path.write_text("hello")
    return ["folder", "--data.path", images, *IMAGES], r"red/\d.png is not an image"


def mistake_manifest_is_a_pipe(images):
    os.mkfifo("list.csv")
    return ["manifest", "--data.path", "list.csv"], "list.csv is a pipe, socket or device, not a manifest"


def mistake_a_pipe_in_a_manifest(images):
    os.mkfifo("pipe.png")
    Path("list.csv").write_text("path,label\nfolder/red/0.png,red\npipe.png,blue\n")
    return ["manifest", "--data.path", "list.csv"], "list.csv, row 2: pipe.png is a pipe, socket or device"


def mistake_splits_and_classes(images):
    (images / "red").rename(images.parent / "red")
    (images / "train").mkdir()
    (images.parent / "red").rename(images / "train" / "red")
    return ["folder", "--data.path", images], r"folder mixes a split \(train\) with classes \(blue\)"


def mistake_taken_directory(images):
    Path("mine").mkdir()
    Path("mine/config.json").write_text("{}")
    return ["digits", "--out", "mine"], "mine already holds a run"


PREPARED = {
    name.removeprefix("mistake_"): value for name, value in list(globals().items()) if name.startswith("mistake_")
}
FOUND_WHILE_TRAINING = ("truncated_image", "truncated_image_in_a_worker", "not_an_image")


@pytest.mark.parametrize("name", [*MISTAKES, *PREPARED])
def test_a_mistake_gets_one_sentence(name, images, capsys):
    mistake = MISTAKES[name] if name in MISTAKES else Mistake(*PREPARED[name](images))
    check_mistake(VISION, mistake, capsys, while_training=name in FOUND_WHILE_TRAINING)
