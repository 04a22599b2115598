"""The model and the training that follow the user's images."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from small_runs import SMALL_VIT

from core.experiments import train_command
from core.experiments.sizes import SIZES
from vision import ViT
from vision.sizing import sizing
from vision.train import VISION, folder

pytestmark = pytest.mark.usefixtures("elsewhere", "without_figures")
FEW = ["--train.steps", "4", "--train.workers", "0", "--train.precision", "fp32", "--train.device", "cpu"]


def train(*argv):
    train_command(VISION, [str(a) for a in argv])


def config(run="runs/folder"):
    return json.loads((Path(run) / "config.json").read_text())


def settings(side, size="tiny", given=(), **model):
    """What is chosen for images of so many pixels."""
    root = Path(f"of-{side}")
    for label in ("a", "b"):
        (root / label).mkdir(parents=True, exist_ok=True)
        for number in range(4):
            Image.new("RGB", (side + number % 2, side), (number, 0, 0)).save(root / label / f"{number}.png")
    experiment = folder()
    data = replace(experiment.data, path=root)
    found = sizing(replace(experiment, data=data, model=replace(experiment.model, **model)), given)
    return found.settings(SIZES[size])


def test_a_run_follows_its_images_and_says_so(images, capsys):
    train("folder", "--data.path", images, *FEW)
    said = capsys.readouterr().out.splitlines()[0]
    assert said == (
        "Sized by 14 training images, the usual one of 10 px, on cpu: a tiny model (width 192, 6 layers, 25 tokens a "
        "sample), 4 steps of 8 (2.29 epochs), learning rate 0.0005. With fewer than 10,000 samples it usually helps "
        "to start from a trained model: name one by --init."
    )
    found = config()
    assert found["size"] == "auto" and found["model"]["image_size"] == 10 and found["model"]["patch_size"] == 2
    assert found["model"]["encoder"]["dim"] == 192 and found["train"]["batch_size"] == 8
    assert found["train"]["warmup"] == 1 and found["train"]["eval_every"] == 4
    assert sum(p.numel() for p in ViT.from_run("runs/folder").parameters()) < 3e6
    assert "&#34;dim&#34;: 192" in Path("runs/folder/report.html").read_text()


def test_options_win(images):
    options = [
        *SMALL_VIT,
        "--train.batch-size",
        "6",
        "--train.accumulate",
        "3",
        "--train.lr",
        "0.01",
        "--model.pool",
        "cls",
    ]
    train("folder", "--data.path", images, *FEW, *options, "--model.size", "small", "--quiet")
    found = config()
    assert [found["model"][name] for name in ("image_size", "patch_size", "pool", "class_token")] == [8, 4, "cls", True]
    assert [found["model"]["encoder"][name] for name in ("dim", "depth", "heads")] == [16, 1, 2]
    assert [found["train"][name] for name in ("batch_size", "accumulate", "lr")] == [6, 3, 0.01]
    assert found["size"] == "small"


def test_a_resumed_run_ends_as_one_that_was_not_stopped(images):
    train("folder", "--data.path", images, *FEW, "--model.depth", "1", "--train.save-every", "2", "--out", "whole")
    shutil.copytree("whole", "stopped")
    for path in Path("stopped/checkpoints").iterdir():
        if "4" in path.name:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert any(Path("stopped/checkpoints").iterdir())
    shutil.rmtree("stopped/model")
    train_command(replace(VISION, sizing=None), ["folder", "--out", "stopped", "--resume"])  # nothing is chosen again
    whole, resumed = (ViT.from_run(run) for run in ("whole", "stopped"))
    assert whole.config == resumed.config and config("whole")["train"] == config("stopped")["train"]
    for name, weight in whole.state_dict().items():
        assert torch.equal(weight, resumed.state_dict()[name]), name


def test_a_start_keeps_its_shape_and_training_follows_the_data(images, capsys):
    train("folder", "--data.path", images, *FEW, *SMALL_VIT, "--out", "start")
    capsys.readouterr()
    train("folder", "--data.path", images, *FEW, "--init", "start", "--tune", "head", "--out", "tuned")
    assert "the model of start (width 16, 1 layers, " in capsys.readouterr().out
    found = config("tuned")
    assert found["model"]["encoder"]["dim"] == 16 and found["model"]["image_size"] == 8
    assert found["train"]["batch_size"] == 8 and found["train"]["lr"] == 0.0005
    with pytest.raises(SystemExit):
        train("folder", "--data.path", images, *FEW, "--init", "start", "--size", "tiny")
    assert "--size tiny has no effect beside --init" in capsys.readouterr().err


@pytest.mark.parametrize("option", [["--model.depth", "3"], ["--model.image-size", "64"], ["--model.pool", "max"]])
def test_a_start_takes_no_shape_from_options(option, images, capsys):
    train("folder", "--data.path", images, *FEW, *SMALL_VIT, "--out", "start")
    again = ["folder", "--data.path", images, *FEW, "--init", "start", "--out", "tuned"]
    with pytest.raises(SystemExit):
        train(*again, *option)
    assert f"{option[1]} has no effect, because --init start and the data decide on it" in capsys.readouterr().err
    assert not Path("tuned").exists()
    train(*again, "--model.depth", "1", "--model.dropout", "0.1")  # as it has, and what is of training


@pytest.mark.parametrize("option", [["--model.multilabel"], ["--model.classes", "7"], ["--model.labels", "a"]])
def test_what_the_data_decide_is_no_option(option, images, capsys):
    with pytest.raises(SystemExit):
        train("folder", "--data.path", images, *FEW, *SMALL_VIT, *option)
    assert "has no effect, because the data decide on it" in capsys.readouterr().err and not Path("runs").exists()


def test_without_a_size_nothing_follows(images):
    train("folder", "--data.path", images, *FEW, *SMALL_VIT, "--size", "None", "--train.batch-size", "8")
    assert config()["train"]["lr"] == folder().train.lr and config()["model"]["class_token"]


@pytest.mark.parametrize(
    "side, expected", [(8, (8, 2)), (48, (48, 8)), (28, (28, 4)), (32, (32, 4)), (33, (32, 4)), (300, (128, 16))]
)
def test_small_images_are_not_scaled_up(side, expected):
    found = settings(side)
    assert (found["model.image_size"], found["model.patch_size"]) == expected


def test_patches_follow_an_image_size_that_is_given():
    found = settings(300, given={"model.image_size"}, image_size=64)
    assert found["model.image_size"] == 64 and found["model.patch_size"] == 8
    assert settings(300, "base")["model.image_size"] == 224
