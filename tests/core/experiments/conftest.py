"""Fixtures of the tests of runs: image files of several classes, and one thread."""

import pytest
import torch
from PIL import Image


@pytest.fixture
def images_of(tmp_path):
    def make(*names):
        for number, name in enumerate(names):
            (tmp_path / "data" / name).mkdir(parents=True)
            for index in range(6):
                Image.new("RGB", (8, 8), (40 * index, 200 * number, 99)).save(tmp_path / "data" / name / f"{index}.png")
        return tmp_path / "data"

    return make


@pytest.fixture
def one_thread():
    """As in the runs that a sweep starts here: sums must come out the same."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
