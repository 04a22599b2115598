"""A resumed run has the classes, samples and model that its first start fixed."""

import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from runs import TINY, refused, train

from core import UserError
from core.experiments.fixed import check_unchanged, save_samples
from core.files import read_json
from text.train import TEXT
from vision.train import digits

pytestmark = pytest.mark.usefixtures("elsewhere")


def test_a_resumed_run_keeps_its_classes(images_of, capsys):
    folder = images_of("cat", "dog")
    small = ["--model.image-size", "8", "--model.patch-size", "4", "--train.workers", "0", "--train.accumulate", "1"]
    train("folder", "--data.path", folder, *TINY[1:], *small, "--train.steps", "3", "--out", "run")
    (folder / "cat").rename(folder / "kitten")
    again = ["folder", "--out", "run", "--resume", "--train.steps", "4"]
    sentence = refused(capsys, *again)
    assert "there is a class 'kitten' now, and none called 'cat'" in sentence and "--init run" in sentence
    (folder / "kitten").rename(folder / "cat")
    (folder / "cat" / "3.png").rename(folder / "dog" / "9.png")
    assert "cat/3.png of the " in refused(capsys, *again)
    (folder / "dog" / "9.png").rename(folder / "cat" / "3.png")
    shutil.copy(folder / "cat" / "3.png", folder / "cat" / "9.png")
    assert "cat/" in refused(capsys, *again)
    (folder / "cat" / "9.png").unlink()
    moved = folder.rename("elsewhere")
    train(*again, "--data.path", moved)
    assert read_json(Path("run/summary.json"))["steps"] == 4


def test_a_resumed_run_keeps_its_vocabulary(capsys):
    rows = [f"the {word} number {n},{label}" for n, (word, label) in enumerate([("red", "a"), ("blue", "b")] * 10)]
    Path("list.csv").write_text("\n".join(["text,label", *rows]))
    tiny = ["--model.dim", "8", "--model.heads", "1", "--model.depth", "1", "--data.tokenizer.vocab-size", "60"]
    steps = ["--train.batch-size", "4", "--train.device", "cpu", "--train.workers", "0"]
    first = ["manifest", "--data.path", "list.csv", *tiny, *steps, "--train.steps", "2", "--out", "run"]
    train(*first, modality=TEXT)
    words = Path("run/tokenizer.json").read_bytes()
    again = ["manifest", "--out", "run", "--resume", "--train.steps", "3"]
    Path("list.csv").write_text("\n".join(["text,label", *rows, *["something quite different,a"] * 20]))
    assert "is new" in refused(capsys, *again, modality=TEXT)
    Path("list.csv").write_text("\n".join(["text,label", *rows]))
    assert "data.tokenizer.vocab_size is 90, and was 60" in refused(
        capsys, *again, "--data.tokenizer.vocab-size", "90", modality=TEXT
    )
    train(*again, modality=TEXT)
    assert Path("run/tokenizer.json").read_bytes() == Path("run/model/tokenizer.json").read_bytes() == words


@pytest.mark.parametrize(
    "now, sentence",
    [
        ({"train": [("a", "x"), ("b", "y")], "test": [("c", "x"), ("d", "x")]}, "d is new"),
        ({"train": [("a", "x")], "test": [("c", "x")]}, "b of the train split is gone"),
        ({"train": [("a", "x"), ("b", "z")], "test": [("c", "x")]}, "b is labelled z, and was labelled y"),
        (
            {"train": [("a", "x")], "test": [("c", "x"), ("b", "y")]},
            "b is in the test split, and was",
        ),
        ({"train": [("b", "y"), ("a", "x")], "test": [("c", "x")]}, "in another order"),
        ({"train": [("a", "x"), ("b", "y"), ("b", "y")], "test": [("c", "x")]}, "b is there 2 times, and was 1"),
    ],
)
def test_a_difference_in_the_samples_is_named(tmp_path, now, sentence):
    save_samples(tmp_path, {"train": [("a", "x"), ("b", "y")], "test": [("c", "x")]})
    with pytest.raises(UserError, match=sentence):
        check_unchanged(tmp_path, digits(), digits(), now)


def test_samples_whose_names_are_no_text_are_held(tmp_path):
    name = os.fsdecode(b"\xff.png")
    save_samples(tmp_path, {"train": [(name, "x")]})
    check_unchanged(tmp_path, digits(), digits(), {"train": [(name, "x")]})
    with pytest.raises(UserError, match="is gone"):
        check_unchanged(tmp_path, digits(), digits(), {"train": [("a.png", "x")]})


def test_what_may_change_changes(tmp_path):
    before = replace(digits(), init="here")
    now = replace(before, init="moved", train=replace(before.train, lr=0.5), model=replace(before.model, dropout=0.2))
    check_unchanged(tmp_path, before, now, {})


def test_a_start_does_not_come_later_or_go(tmp_path):
    for before, now, words in ((None, "start", "init is start, and was None"), ("start", None, "and was start")):
        with pytest.raises(UserError, match=words):
            check_unchanged(tmp_path, replace(digits(), init=before), replace(digits(), init=now), {})
