"""The prediction command: what it prints and draws, and what it refuses."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import ViTImageProcessor
from vision_peers import hf_peer

from core import EncoderConfig
from core.experiments import predict_command
from vision import ViT, ViTConfig
from vision.predict import Arguments, predict

pytestmark = pytest.mark.usefixtures("elsewhere")


@pytest.fixture
def run():
    """A model of two classes in the directory run, and images in the working directory."""
    encoder = EncoderConfig(dim=8, depth=1, heads=1)
    model = ViT(ViTConfig(image_size=8, patch_size=4, classes=2, encoder=encoder))
    model.save_pretrained("run")
    Path("broken.png").write_text("not a image")
    Path("bare").mkdir()
    Image.fromarray(np.zeros((8, 8, 3), dtype=np.uint8)).save("fine.png")
    return model


def predicted(monkeypatch, capsys, *argv, code=0):
    """What predict printed, or the sentence that it ended with."""
    monkeypatch.setattr("sys.argv", ["predict", *map(str, argv)])
    monkeypatch.setattr("sys.stdin", None)
    if not code:
        predict_command("predict", Arguments, predict)
        return capsys.readouterr().out.splitlines()
    with pytest.raises(SystemExit) as exit:
        predict_command("predict", Arguments, predict)
    captured = capsys.readouterr()
    assert exit.value.code == code and captured.err.count("\n") == 1
    rows = captured.out.splitlines()
    assert not rows or sum(": error: " in row for row in rows) in range(1, len(rows))
    return captured.err


@pytest.mark.parametrize(
    "argv, words",
    [
        (["nowhere", "a.png"], "nowhere holds no trained model"),
        (["run"], "Name at least one image file"),
        (["run", "missing.png"], "no image missing.png"),
        (["run", "broken.png"], "broken.png is not an image"),
        (["run", "fine.png", "broken.png"], "broken.png is not an image"),
        (["run", "fine.png", "--top", "0"], "--top must be at least 1"),
        (["run", "fine.png", "--top", "3"], "--top 3 is more than the 2 classes"),
        (
            ["run", "fine.png", "."],
            "1 of 3 inputs could not be predicted, and the lines above say why; the first: broken",
        ),
        (["run", "bare"], "bare holds no image files (.avif, .bmp, .gif, "),
        (["run", "--embed", "--top", "1", "fine.png"], "--top has no effect beside --embed"),
        (["run", "fine.png", "--device", "mps"], "--device mps: there is no such device here"),
        (["run", "fine.png", "--out", "table.txt"], "--out table.txt must end in .csv, .jsonl or .parquet"),
        (["run", "fine.png", "--out", "nowhere/table.csv"], "--out nowhere/table.csv: there is no directory nowhere"),
        (["run", "/dev/zero"], "/dev/zero is a pipe, socket or device, not an image"),
        (["run", "fine.png", "--plots", "broken.png"], "broken.png cannot hold the output"),
        (["run", "fine.png", "--plots", "broken.png/in"], "broken.png/in cannot hold the output"),
        (["run", "fine.png", "--plots", "/proc/nothing"], "/proc/nothing cannot hold the output"),
        (["run", "fine.png", "--plots", "/proc/self"], "cannot be read or written"),
        (["run", "fine.png", "--plots", "x" * 300], "cannot hold the output (File name too long)"),
    ],
)
def test_predicting_from_bad_input(argv, words, run, capsys, monkeypatch, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    error = predicted(monkeypatch, capsys, *argv, code=1)
    assert error.startswith("error: ") and words in error
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    "value, words",
    [
        (3e38, "The model in run predicts values that are not finite numbers"),
        (torch.nan, "The model in run cannot be loaded: The checkpoint does not fit the model; head.weight: NaN"),
        (torch.inf, "head.weight: NaN or infinity in the checkpoint"),
    ],
)
def test_predictions_that_are_no_numbers_are_refused(value, words, run, capsys, monkeypatch):
    with torch.no_grad():
        run.head.weight.fill_(value)
    run.save_pretrained("run")
    error = predicted(monkeypatch, capsys, "run", "fine.png", code=1)
    assert words in error


def test_predictions_never_overwrite_an_input(run, capsys, monkeypatch):
    Path("in").mkdir()
    Path("other").mkdir()
    Path("in/x.png").write_bytes(Path("fine.png").read_bytes())
    Path("other/x.png").symlink_to("../in/x.png")
    os.link("in/x.png", "in/linked.png")
    before = Path("in/x.png").read_bytes()
    predicted(monkeypatch, capsys, "run", "in/x.png", "--plots", "in")
    predicted(monkeypatch, capsys, "run", "in/x.png", "in/linked.png", "in/x-2.png", "--plots", "in")
    predicted(monkeypatch, capsys, "run", "other/x.png", "--plots", "in")
    predicted(monkeypatch, capsys, "run", "other/x.png", "--plots", "other")
    assert Path("in/x.png").read_bytes() == before == Path("in/linked.png").read_bytes()
    assert sorted(path.name for path in Path("other").iterdir()) == ["x-2.png", "x.png"]
    inside = ["linked-2.png", "linked.png", "x-2-2.png", "x-2.png", "x-3.png", "x-4.png", "x.png"]
    assert sorted(path.name for path in Path("in").iterdir()) == inside


def test_pictures_are_made_though_nobody_reads_what_is_printed(run, monkeypatch):
    for number in range(3):
        Image.new("RGB", (8, 8)).save(f"{number}.png")
    monkeypatch.setattr("sys.argv", ["predict", "run", "0.png", "1.png", "2.png", "--plots", "made"])
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as unread:
        monkeypatch.setattr("sys.stdout", unread)
        predict_command("predict", Arguments, predict)
    assert len(list(Path("made").iterdir())) == 3
    if Path("/dev/full").exists():  # where what was predicted is lost
        full = os.open("/dev/full", os.O_WRONLY)
        monkeypatch.setattr("sys.stdout", os.fdopen(full, "w", closefd=False))
        with pytest.raises(SystemExit) as end:
            predict_command("predict", Arguments, predict)
        assert end.value.code == 1
        os.close(full)


def test_images_of_one_name_get_pictures_of_their_own(run, capsys, monkeypatch):
    Path("b").mkdir()
    for name in ("a.png", "b/a.png", "a.jpg", "A.png"):
        Image.new("RGB", (8, 8)).save(name)
    lines = predicted(monkeypatch, capsys, "run", "a.png", "b/a.png", "a.jpg", "A.png", "--plots", "plots")
    images = [line.rpartition("attention: ")[2].rstrip(")") for line in lines]
    assert len({name.casefold() for name in images}) == 4 and all(Path(name).is_file() for name in images)


def test_names_that_are_no_text(run, capsys, monkeypatch):
    odd = os.fsdecode(b"\xff.png")
    Path("fine.png").rename(odd)
    [line] = predicted(monkeypatch, capsys, "run", odd, "--plots", os.fsdecode(b"to\xfe"))
    assert line.startswith("\\udcff.png: ") and os.path.exists(b"to\xfe/\xff.png")


def test_a_16_bit_image_is_predicted_as_its_8_bit_copy(run, capsys, monkeypatch):
    Path("deep").mkdir()
    greys = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4
    Image.fromarray(greys).save("grey.png")
    Image.fromarray(greys.astype(np.uint16) * 257).save("deep/grey.png")
    one, other = predicted(monkeypatch, capsys, "run", "grey.png", "deep/grey.png")
    assert one.split(":")[1].split("(")[0] == other.split(":")[1].split("(")[0]


def test_a_stock_checkpoint(tmp_path, monkeypatch, capsys):
    """Its processor resizes tensors, ours images: a pixel differs by at most one step of 256."""
    peer, processor = hf_peer("ViTForImageClassification"), ViTImageProcessor(size={"height": 32, "width": 32})
    for part in (peer, processor):
        part.save_pretrained(tmp_path / "stock")
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "noise.png")
    with torch.no_grad():
        given = processor(Image.open(tmp_path / "noise.png"), return_tensors="pt")
        best, label = peer(**given).logits.softmax(dim=1)[0].max(dim=0)
    (said,) = predicted(monkeypatch, capsys, tmp_path / "stock", tmp_path / "noise.png", "--top", "1")
    name, found = said.removeprefix(f"{tmp_path / 'noise.png'}: ").split()
    assert name == f"LABEL_{label}" and float(found.rstrip("%")) == pytest.approx(100 * float(best), abs=1)
