"""The model and the training that follow the user's clips."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
from small_runs import SMALL_AST

from audio import AST
from audio.sizing import sizing
from audio.train import AUDIO, folder
from core.experiments import train_command
from core.experiments.sizes import SIZES

pytestmark = pytest.mark.usefixtures("elsewhere", "without_figures")
FEW = ["--train.steps", "3", "--train.workers", "0", "--train.precision", "fp32", "--train.device", "cpu"]


def train(*argv):
    train_command(AUDIO, [str(a) for a in argv])


def config(run="runs/folder"):
    return json.loads((Path(run) / "config.json").read_text())


def found(length, rate=16_000, name="a.wav", **data):
    """What is chosen for clips of so many seconds, one of which is twice as long."""
    root = Path("clips")
    for label in ("a", "b"):
        (root / label).mkdir(parents=True, exist_ok=True)
        for number in range(5):
            count = int(length * rate * (2 if number == 4 else 1))
            samples = np.random.default_rng(number).normal(0, 0.1, count)
            soundfile.write(root / label / f"{number}{name}", samples, rate)
    start = folder()
    return sizing(replace(start, data=replace(start.data, path=root, **data)), ())


def test_a_run_follows_its_clips_and_says_so(clips, capsys):
    train("folder", "--data.path", clips, *FEW)
    said = capsys.readouterr().out.splitlines()[0]
    assert said.startswith("Sized by 14 training clips, the usual one of 0.") and "at 16,000 Hz, on cpu: a tiny" in said
    model, training = config()["model"], config()["train"]
    assert model["patch_size"] == model["stride"] == [16, 2] and model["encoder"]["depth"] == 6
    assert 0 < model["time_mask"] <= 8 and 40 <= model["max_frames"] <= 60  # the longest has 40 frames at most
    assert training["batch_size"] == 8 and training["warmup"] == 1
    assert sum(p.numel() for p in AST.from_run("runs/folder").parameters()) < 3e6


def test_options_win(clips):
    train("folder", "--data.path", clips, *FEW, *SMALL_AST, "--train.batch-size", "4", "--model.sample-rate", "8000")
    model = config()["model"]
    names = ("n_mels", "max_frames", "patch_size", "stride", "time_mask", "sample_rate")
    assert [model[name] for name in names] == [24, 60, 8, 8, 8, 8000]
    assert model["freq_mask"] == 6 and config()["train"]["batch_size"] == 4


def test_a_start_keeps_its_spectrograms_and_masks_follow_the_clips(clips):
    train("folder", "--data.path", clips, *FEW, *SMALL_AST, "--out", "start")
    train("folder", "--data.path", clips, *FEW, "--init", "start", "--out", "tuned")
    start, tuned = config("start")["model"], config("tuned")["model"]
    changed = {name for name in start if start[name] != tuned[name]}
    assert changed <= {"freq_mask", "time_mask", "encoder"} and 0 < tuned["time_mask"] <= 8


def test_longer_clips_have_longer_patches_and_masks():
    short, long = (found(seconds).settings(SIZES["tiny"]) for seconds in (0.3, 3.0))
    assert short["model.patch_size"] == (16, 2) and long["model.patch_size"] == (16, 19)
    assert short["model.time_mask"] < long["model.time_mask"] < short["model.max_frames"] * 2
    assert long["model.max_frames"] >= 1.2 * 598  # 6 seconds
    assert short["model.max_frames"] % 2 == long["model.max_frames"] % 19 == 0


def test_a_stretch_and_a_low_sample_rate():
    low = found(0.5, rate=8000, seconds=0.2)
    settings = low.settings(SIZES["tiny"])
    assert settings["model.sample_rate"] == 8000 and low.what == "clips, the usual one of 0.2 s at 8,000 Hz"
    assert settings["model.max_frames"] < 30
    assert found(0.5, rate=48_000).settings(SIZES["tiny"])["model.sample_rate"] == 16_000


def test_formats_that_state_no_length_get_the_most_frames():
    settings = found(0.5, name=".ogg").settings(SIZES["tiny"])
    assert settings["model.max_frames"] >= 4096 - 32 and settings["model.patch_size"] == (16, 3)
