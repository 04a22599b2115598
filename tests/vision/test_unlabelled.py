"""Images without classes: read, augmented, cached and counted as others are, and learnt from by masked patches."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from mistakes import Mistake, check_mistake
from small_runs import IMAGES

from core import UserError
from core.config import from_dict, to_dict
from core.experiments import train_command
from core.experiments.command import parse_experiment
from core.objectives import MaskedConfig
from core.training.sampling import SeededDataset
from vision import Preprocess
from vision.datasets import Folder, Unlabelled
from vision.decoding import read_image
from vision.model import ImageFormat
from vision.train import VISION, VisionExperiment, folder

FORM = ImageFormat(size=12, channels=3, preprocess=Preprocess(interpolation="bilinear"))


def pretrain() -> VisionExperiment:
    """Masked patches of unlabelled images."""
    return replace(folder(), data=Unlabelled(), masked=MaskedConfig(ratio=0.75))


PRETRAINING = replace(VISION, experiments=(pretrain,))


def train(*argv):
    train_command(PRETRAINING, ["pretrain", *(str(word) for word in argv)])


def test_a_run_without_classes_and_its_resumption(images, elsewhere):
    (images / "red" / "0.png").rename(images / "loose.png")
    train("--data.path", images, *IMAGES, "--out", "run")
    summary = json.loads(Path("run/summary.json").read_text())
    assert summary["metric"] == "loss" and (summary["train_samples"], summary["validation_samples"]) == (18, 2)
    assert summary["metrics"] == summary["validation"]
    assert "10 % of the samples were held out for validation" in Path("run/report.html").read_text()
    named = json.loads(Path("run/samples.json").read_text())
    assert [len(named[split]) for split in ("train", "validation")] == [18, 2] and "test" not in named
    train("--out", "run", "--resume", "--train.steps", "8")
    assert json.loads(Path("run/summary.json").read_text())["steps"] == 8


def test_a_run_is_not_resumed_with_other_files(images, elsewhere, capsys):
    train("--data.path", images, *IMAGES, "--out", "run")
    (images / "red" / "0.png").rename(images / "red" / "new.png")
    with pytest.raises(SystemExit):
        train("--out", "run", "--resume", "--train.steps", "8")
    assert "red/0.png of the train split is gone" in capsys.readouterr().err


def test_training_images_are_cropped_and_flipped_and_others_are_not(images):
    data = Unlabelled(path=images).read(FORM)
    assert [len(part) for part in data.parts().values()] == [18, 2, 2] and data.labels == ()
    pixels, target = data.train[0]
    assert pixels.shape == (3, 12, 12) and target == 0
    drawn = [SeededDataset(data.train, 0)[(epoch, 3)][0] for epoch in (0, 1, 0)]
    assert torch.equal(drawn[0], drawn[2]) and not torch.equal(drawn[0], drawn[1])
    plain = replace(Unlabelled(path=images), augment=Folder().augment).read(FORM)
    assert torch.equal(plain.validation[0][0], data.validation[0][0])
    assert not torch.equal(plain.train[3][0], drawn[0])


def test_the_cache_and_the_token_counts_are_those_of_other_files(images, monkeypatch):
    calls = []
    monkeypatch.setattr("vision.images.read_image", lambda path, mode: calls.append(path) or read_image(path, mode))
    data = Unlabelled(path=images, cache=images.parent / "cache").read(replace(FORM, patch_size=4, stride=4, prefix=1))
    for epoch in range(2):
        for index in range(18):
            SeededDataset(data.train, 0)[(epoch, index)]
    assert sorted(calls) == sorted(path for path, _ in data.train.samples)
    assert data.train.token_counts == [10] * 18


def test_the_config_is_read_back():
    experiment = pretrain()
    saved = json.loads(json.dumps(to_dict(experiment)))
    assert saved["data"]["name"] == "unlabelled" and from_dict(VisionExperiment, saved) == experiment
    with pytest.raises(UserError, match=r"there is no option --data\.per-class"):
        parse_experiment(PRETRAINING, ["pretrain", "--data.per-class", "3"])


def mistake_no_path(images):
    return [], "The unlabelled data need --data.path"


def mistake_no_images(images):
    Path("none").mkdir()
    return ["--data.path", "none"], "none has no files to train on"


def mistake_damaged(images):
    for path in images.rglob("*.png"):
        path.write_bytes(path.read_bytes()[:200])
    return ["--data.path", images, *IMAGES], r"\d.png cannot be read"


def mistake_cache(images):
    return ["--data.path", images, *IMAGES, "--data.cache", images / "cache"], "name a directory elsewhere"


MISTAKES = {name.removeprefix("mistake_"): make for name, make in globals().items() if name.startswith("mistake_")}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_gets_one_sentence(name, images, elsewhere, capsys):
    argv, words = MISTAKES[name](images)
    check_mistake(PRETRAINING, Mistake(["pretrain", *argv], words), capsys, while_training=name == "damaged")
