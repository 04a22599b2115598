"""Two towers learn the user's own pairs of images and texts, from CLIP, SigLIP or from random weights."""

import csv
import json
import random
from pathlib import Path

import pytest
import torch
import transformers
from image_text_peers import clip_folder, siglip_folder
from PIL import Image, ImageDraw

from core.experiments import train_command
from examples.multimodal.pretrained import load_pretrained
from examples.multimodal.train import MULTIMODAL
from examples.multimodal.zero_shot import Arguments, zero_shot

KINDS = [(color, shape) for color in ("red", "green", "blue") for shape in ("circle", "square")]
SHORT = ["--train.steps", "60", "--train.lr", "2e-3", "--train.warmup", "10", "--train.batch-size", "24"]
SHORT += ["--train.precision", "fp32", "--train.eval-every", "60"]

pytestmark = pytest.mark.usefixtures("elsewhere", "without_figures")


@pytest.fixture
def pairs():
    """Ninety drawings of coloured shapes, and what they show."""
    draws = random.Random(0)
    rows = []
    for number in range(90):
        color, shape = KINDS[number % len(KINDS)]
        image = Image.new("RGB", (32, 32), (draws.randrange(90),) * 3)
        x, y = draws.randrange(10), draws.randrange(10)
        pen = ImageDraw.Draw(image)
        (pen.ellipse if shape == "circle" else pen.rectangle)((x, y, x + 20, y + 20), fill=color)
        image.save(f"{number}.png")
        rows.append({"image": f"{number}.png", "text": f"a {color} {shape}"})
    with Path("list.csv").open("w") as file:
        writer = csv.DictWriter(file, ["image", "text"])
        writer.writeheader()
        writer.writerows(rows)
    return Path("list.csv")


def train(*argv):
    train_command(MULTIMODAL, ["pairs", *(str(each) for each in argv)])


def start(kind):
    """A checkpoint as it is before any training."""
    peer = kind(Path("start"))
    torch.manual_seed(0)
    type(peer)(peer.config).save_pretrained("start")
    return "start"


@pytest.mark.parametrize(("kind", "tune"), [(clip_folder, "full"), (siglip_folder, "full"), (clip_folder, "lora")])
def test_pairs_are_learned_from_a_checkpoint(kind, tune, pairs):
    train("--init", start(kind), "--data.path", pairs, "--tune", tune, "--out", "run", *SHORT)
    summary = json.loads(Path("run/summary.json").read_text())
    assert summary["metrics"]["recall"] > summary["baseline"]["before training"] + 0.2
    page = Path("run/report.html").read_text()
    assert "From image to" in page and "before training" in page
    trained, (before, _) = load_pretrained("run")[0].state_dict(), load_pretrained("start")
    kept = [name for name, weight in before.state_dict().items() if torch.equal(weight, trained[name])]
    assert all(name.endswith(("words.weight", "key.bias")) or tune == "lora" for name in kept)
    assert tune == "full" or "text.embed.words.weight" in kept
    texts = tuple(f"a {color} {shape}" for color, shape in KINDS)
    zero_shot(Arguments(model="run", image=Path("1.png"), texts=texts, out=Path("out")))
    (row,) = csv.DictReader(Path("out/probabilities.csv").read_text().splitlines())
    if kind is clip_folder:  # SigLIP's scale and bias need more steps from random weights
        assert max(texts, key=lambda text: float(row[text])).startswith("a red")


def test_a_new_model_learns_pairs(pairs):
    small = ["--model.image.image-size", "32", "--model.image.patch-size", "8", "--model.image.classes", "24"]
    small += ["--model.text.classes", "24"]
    for tower in ("image", "text"):
        for name, value in (("dim", 32), ("depth", 2), ("heads", 4)):
            small += [f"--model.{tower}.encoder.{name}", value]
    train("--data.path", pairs, "--out", "run", *small, *SHORT)
    assert json.loads(Path("run/summary.json").read_text())["metrics"]["recall"] > 0.5
    model, tokenizer = load_pretrained("run")
    assert tokenizer.size == model.config.text.vocab_size


def test_mistakes_are_one_sentence(pairs, capsys):
    whole = "".join(f"{number}.png,,a red square\n" for number in range(6))
    Path("half.csv").write_text(f"image,audio,text\n{whole}7.png,3.wav,\n")
    Path("3.wav").write_bytes(b"RIFF")
    transformers.BertConfig().save_pretrained("bert")
    for argv, message in {
        ("--data.path", pairs, "--data.modalities", "image"): "leave --data.modalities at image text",
        ("--data.path", "half.csv"): "half.csv, row 7 has no text",
        ("--data.path", pairs, "--init", "bert"): "bert",
        ("--data.path", pairs, "--init", "nowhere"): "nowhere",
    }.items():
        with pytest.raises(SystemExit):
            train(*argv, *SHORT)
        assert message in capsys.readouterr().err
