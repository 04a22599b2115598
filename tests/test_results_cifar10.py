"""The table of CIFAR-10 made from end to end, on a few made-up images and for a few steps."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from benchmarks.results.cifar10 import Cifar10
from benchmarks.transfer.commands import Commands
from core.experiments import train_command
from vision.train import VISION

pytestmark = pytest.mark.usefixtures("without_figures")

SHORT = {"train.steps": 2, "train.batch-size": 8, "train.warmup": 1, "train.device": "cpu", "train.precision": "fp32"}


@pytest.fixture
def images(tmp_path):
    """Dark and bright ones."""
    generator = np.random.default_rng(0)
    for split, count in (("train", 60), ("test", 6)):
        for label, level in (("dark", 60), ("bright", 200)):
            folder = tmp_path / "images" / split / label
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = generator.integers(level - 50, level + 50, (32, 32, 3)).astype("uint8")
                Image.fromarray(pixels).save(folder / f"{number}.png")
    return tmp_path / "images"


def test_cifar10(images, tmp_path, monkeypatch):
    monkeypatch.setattr("core.experiments.experiment.write_run_report", lambda *_: None)  # half of a short run's time
    commands = Commands(tmp_path / "out", call=lambda words: train_command(VISION, [*words[1:]]) or "")
    start = Cifar10()
    changed = replace(start, ways={name: {**options, **SHORT} for name, options in start.ways.items()})
    rows = [row.strip("| ").split(" | ") for row in changed.run(commands, images, (0,)).splitlines()[2:]]
    assert [name for name, _, _ in rows] == [*start.ways] and all(accuracy.endswith(")") for _, accuracy, _ in rows)
    assert ["0.55 M parameters" in rows[0][2], "0.61 M parameters" in rows[2][2]] == [True, True]
    pflop = [float(budget.split(" PFLOP")[0].split()[-1]) for _, _, budget in rows]
    assert 0.9 < pflop[0] / pflop[2] < 1.1
    assert pflop[1] < 0.8 * pflop[0]  # small images cost less
