"""The multimodal command: it trains on digits and on a manifest, and a mistake gets one sentence."""

import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from multimodal_samples import PAD, samples
from PIL import Image

from core import UserError
from core.experiments import train_command
from examples.multimodal import ContrastiveModel, FusedModel
from examples.multimodal.data import collate
from examples.multimodal.train import MULTIMODAL

SHORT = ["--train.steps", "4", "--train.batch-size", "8", "--train.eval-every", "4", "--train.warmup", "2"]
SHORT += ["--model.dim", "16", "--model.heads", "2", "--model.depth", "1", "--train.precision", "fp32"]

pytestmark = pytest.mark.usefixtures("elsewhere")


def train(*argv):
    train_command(MULTIMODAL, [str(a) for a in argv])


def test_a_joint_space_by_command(capsys):
    train("digits", *SHORT, "--train.accumulate", "2")
    run = Path("runs/digits")
    assert "report: runs/digits/report.html" in capsys.readouterr().out
    metrics = json.loads((run / "summary.json").read_text())["metrics"]
    assert {"zero_shot", "recall", "image_to_text", "audio_to_image"} <= set(metrics)
    page = (run / "report.html").read_text()
    assert page.count("<svg") == 6 and "audio → text" in page and "From text to image and audio" in page
    model = ContrastiveModel.from_run(run)
    inputs = collate(samples(), PAD).inputs
    model.save_pretrained("again")
    for a, b in zip(model(*inputs), ContrastiveModel.from_pretrained("again")(*inputs), strict=True):
        assert torch.equal(a, b)
    assert (run / "model" / "tokenizer.json").is_file()


def test_the_fused_model_by_command():
    train("fused", *SHORT, "--data.modalities", "image", "text")
    metrics = json.loads(Path("runs/fused/summary.json").read_text())["metrics"]
    assert set(metrics) == {"loss", "accuracy", "image", "text"}
    assert FusedModel.from_run("runs/fused").config.classes == 10


@pytest.fixture
def pairs(tmp_path):
    """Twelve things in pictures, sounds and words; some lack one."""
    generator = np.random.default_rng(0)
    rows = ["image,audio,text"]
    for number in range(12):
        Image.fromarray(generator.integers(0, 255, (20, 24, 3), dtype=np.uint8)).save(tmp_path / f"{number}.png")
        soundfile.write(tmp_path / f"{number}.wav", generator.normal(0, 0.1, 4_000), 16_000)
        cells = [f"{number}.png", f"{number}.wav", f"thing number {number}"]
        if number % 4:
            cells[number % 4 - 1] = ""
        rows.append(",".join(cells))
    return rows


MANIFEST = ["manifest", "--data.path", "pairs.csv", *SHORT, "--train.accumulate", "2", "--train.workers", "0"]
MANIFEST += ["--model.image.size", "32", "--data.test-fraction", "0.3"]


def test_a_manifest_by_command(pairs):
    Path("pairs.csv").write_text("\n".join(pairs))
    train(*MANIFEST)
    summary = json.loads(Path("runs/manifest/summary.json").read_text())
    assert summary["train_samples"] == 7 and summary["test_samples"] == 4 and "recall" in summary["metrics"]


@pytest.mark.parametrize(
    "change, words",
    [
        (
            lambda rows: ["image,label", "0.png,a"],
            "pairs.csv, row 1 has only image: it needs two of image, audio and text",
        ),
        (lambda rows: [*rows, "0.png,,"], "pairs.csv, row 13 has only image"),
        (lambda rows: [*rows, "9.bmp,,a thing"], "pairs.csv, row 13: there is no file 9.bmp"),
        (lambda rows: [*rows, ",9.mp3,a thing"], "pairs.csv, row 13: there is no file 9.mp3"),
        (
            lambda rows: [r + s for r, s in zip(rows, [",split", ",later", *[",test"] * 11], strict=True)],
            "row 1: split is 'later'",
        ),
        (
            lambda rows: [r + s for r, s in zip([*rows, rows[5]], [",split", *[",train"] * 12, ",dev"], strict=True)],
            r"row 5 \(4.png.*\) and pairs.csv, row 13 \(4.png.*\) are the same file, once to train on and once to val",
        ),
        (lambda rows: [*rows, "pipe,,a thing"], "row 13: pipe is a pipe, socket or device"),
        (lambda rows: rows[:2], "Too few samples"),
        (lambda rows: [row.replace("png", "txt") for row in rows], r"row \d+: \d+.txt is not an image"),
        (
            lambda rows: [row.replace("wav", "txt") for row in rows],
            r"row \d+: .*txt is not an audio file",
        ),
    ],
    ids=[
        "columns",
        "single",
        "no image",
        "no sound",
        "split",
        "leak",
        "pipe",
        "one row",
        "not an image",
        "not a sound",
    ],
)
def test_a_mistake_in_a_manifest_is_named_with_its_row(change, words, pairs, capsys):
    os.mkfifo("pipe")
    for number in range(12):
        Path(f"{number}.txt").write_text("hello")
    Path("pairs.csv").write_text("\n".join(change(pairs)))
    with pytest.raises(SystemExit) as exit:
        train(*MANIFEST)
    error = capsys.readouterr().err.split("error: ")[-1].strip()
    assert exit.value.code == 1 and len(error.splitlines()) == 1
    assert re.search(words, error), error


@pytest.mark.parametrize(
    "argv, words",
    [
        (["manifest"], "need --data.path"),
        (["digits", "--data.modalities", "image"], "needs two modalities"),
        (["digits", "--data.modalities", "image", "image"], "each once"),
        (["digits", "--init", "runs/x"], "leave out --init"),
        (["digits", "--data.levels", "-30", "0"], "must rise from -12 to 20"),
        (["fused", "--data.modality-dropout", "1"], "must be less than 1"),
        (["fused", "--model.towers"], "leave out --model.towers"),
        (["digits", "--model.audio.sample-rate", "16000"], "leave --model.audio.sample-rate"),
    ],
)
def test_a_mistake_gets_one_sentence(argv, words, capsys):
    with pytest.raises((SystemExit, UserError)) as exit:
        train(*argv)
    assert exit.type is SystemExit and exit.value.code == 1
    error = capsys.readouterr().err
    assert words in error and "Traceback" not in error and not Path("runs").exists()
