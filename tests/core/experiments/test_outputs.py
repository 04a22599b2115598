"""Outputs overwrite nothing, and predictions that are no numbers are refused."""

import os
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from core import UserError
from core.experiments.outputs import check_finite, make_output_folder, output_names, shown_classes


def names(inputs, folder, suffix=".png"):
    return [path.name for path in output_names([Path(path) for path in inputs], folder, suffix)]


def test_outputs_are_named_after_their_inputs(tmp_path):
    assert names(["a/x.jpg", "b.c.png", "y"], tmp_path) == ["x.png", "b.c.png", "y.png"]
    assert output_names([Path("a/x.jpg")], tmp_path, ".wav") == [tmp_path / "x.wav"]


def test_inputs_of_one_name_are_numbered(tmp_path):
    assert names(["a.png", "b/a.png", "c.png", "a.jpg"], tmp_path) == ["a-1.png", "a-2.png", "c.png", "a-3.png"]
    assert names(["a.png", "b/a.png", "a-1.png", "a-2.png"], tmp_path) == [
        "a-1.png",
        "a-2.png",
        "a-1-2.png",
        "a-2-2.png",
    ]
    assert names(["a-1.png", "a.png", "b/a.png"], tmp_path) == ["a-1.png", "a-2.png", "a-3.png"]


def test_names_that_some_file_systems_hold_for_one_are_numbered(tmp_path):
    assert names(["a.png", "A.png"], tmp_path) == ["a-1.png", "A-2.png"]
    assert len({name.casefold() for name in names(["a-2.png", "A.png", "a.png"], tmp_path)}) == 3
    assert names(["\u00e9.png", "e\u0301.png"], tmp_path) == ["\u00e9-1.png", "e\u0301-2.png"]


def test_what_is_there_is_never_overwritten(tmp_path):
    (tmp_path / "x.png").touch()
    (tmp_path / "y.png").symlink_to("nowhere")
    (tmp_path / "z.png").mkdir()
    (tmp_path / "x-2.png").touch()
    os.link(tmp_path / "x.png", tmp_path / "w.png")
    inputs = [tmp_path / "x.png", "y.jpg", "z.jpg", "w.jpg"]
    assert names(inputs, tmp_path) == ["x-3.png", "y-2.png", "z-2.png", "w-2.png"]
    linked = tmp_path / "linked"
    linked.symlink_to(tmp_path, target_is_directory=True)
    assert names(["x.jpg"], linked) == ["x-3.png"]


def test_names_fit_the_file_system(tmp_path):
    long = ["é" * 125 + ".png", "x/" + "é" * 125 + ".png", "y" * 251 + ".png"]
    for path in output_names([Path(name) for name in long], tmp_path, ".png"):
        path.touch()
    assert len(list(tmp_path.iterdir())) == 3
    odd = os.fsdecode(b"\xff.png")
    assert names([odd], tmp_path) == [odd]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.from_regex(r"[aA](-[123]){0,2}", fullmatch=True), max_size=8), st.sets(st.sampled_from("abc123")))
def test_no_two_outputs_are_the_same(tmp_path_factory, stems, there):
    folder = tmp_path_factory.mktemp("out")
    for name in there:
        (folder / f"a-{name}.png").touch()
    found = output_names([Path(f"{n}/{stem}.jpg") for n, stem in enumerate(stems)], folder, ".png")
    assert len({path.name.casefold() for path in found}) == len(stems) and not any(path.exists() for path in found)


@pytest.mark.parametrize(
    "name, words", [("file", "File exists"), ("file/in", "Not a directory"), ("x" * 300, "too long")]
)
def test_a_folder_that_cannot_be_made_gets_one_sentence(name, words, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=f"cannot hold the output .*{words}.*--out") as error:
        make_output_folder(tmp_path / name)
    assert "\n" not in str(error.value)
    make_output_folder(tmp_path / "a" / "b")
    make_output_folder(tmp_path / "a" / "b")


def test_so_many_classes_are_shown():
    assert [shown_classes(top, 5) for top in (None, 1, 5)] == [3, 1, 5] and shown_classes(None, 2) == 2
    with pytest.raises(UserError, match="--top 6 is more than the 5 classes"):
        shown_classes(6, 5)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_predictions_that_are_no_numbers_are_refused(value):
    check_finite(torch.tensor([0.1, 0.9]), "runs/fine")
    with pytest.raises(UserError, match="runs/bad predicts values that are not finite"):
        check_finite(torch.tensor([0.1, value]), "runs/bad")
