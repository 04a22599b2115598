"""Image files of several classes, for runs on data of one's own."""

import pytest
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
