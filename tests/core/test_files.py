"""Files and directories are replaced whole or not at all."""

import os
import shutil

import pytest

from core.files import _exchange, filling, replacing_folder


def test_a_directory_is_replaced_in_one_step(tmp_path, monkeypatch):
    """A kill between two renames would find none."""
    for name in ("one", "other"):
        (tmp_path / "try" / name).mkdir(parents=True)
    if not _exchange(tmp_path / "try" / "one", tmp_path / "try" / "other"):
        pytest.skip("this file system cannot swap directories")
    shutil.rmtree(tmp_path / "try")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "old").write_text("")
    monkeypatch.setattr("os.replace", lambda *_: pytest.fail("this takes two steps"))
    with replacing_folder(tmp_path / "model") as partial:
        (partial / "new").write_text("")
    assert os.listdir(tmp_path) == ["model"] and os.listdir(tmp_path / "model") == ["new"]


@pytest.mark.parametrize("fill", [replacing_folder, filling])
@pytest.mark.parametrize("swaps", [True, False])
def test_a_directory_in_its_place_is_new_or_as_it_was(tmp_path, monkeypatch, fill, swaps):
    if not swaps:
        monkeypatch.setattr("core.files._exchange", lambda *_: False)
    folder = tmp_path / "model"
    (folder / "inner").mkdir(parents=True)
    (folder / "inner" / "old").write_text("")
    with pytest.raises(KeyError), fill(folder) as partial:
        (partial / "inner").mkdir()
        raise KeyError
    assert os.listdir(folder / "inner") == ["old"]
    with fill(folder) as partial:
        (partial / "inner").mkdir()
        (partial / "inner" / "new").write_text("")
    assert os.listdir(tmp_path) == ["model"] and os.listdir(folder) == ["inner"]
    assert os.listdir(folder / "inner") == ["new"]
