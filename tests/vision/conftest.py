from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def images(tmp_path) -> Path:
    """Two classes of 10 x 12 images that differ in colour: folder/red and folder/blue."""
    generator = np.random.default_rng(0)
    for label, channel in (("red", 0), ("blue", 2)):
        folder = tmp_path / "folder" / label
        folder.mkdir(parents=True)
        for number in range(10):
            pixels = generator.integers(0, 60, (10, 12, 3), dtype=np.uint8)
            pixels[..., channel] += 150
            Image.fromarray(pixels).save(folder / f"{number}.png")
    return tmp_path / "folder"
