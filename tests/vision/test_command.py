"""The training command: it works, and can be resumed."""

import json
import os
import re
from pathlib import Path

import pytest
from markupsafe import escape
from small_runs import CLASSIFIER_RUN, IMAGES

from core.experiments import predict_command, train_command
from vision import ViT
from vision.augment import eval_transform
from vision.decoding import read_image
from vision.predict import Arguments, predict
from vision.train import VISION

pytestmark = pytest.mark.usefixtures("elsewhere")


def train(*argv):
    train_command(VISION, [str(a) for a in argv])


def test_folder_run_leaves_a_whole_run_and_predicts(images, capsys, monkeypatch):
    train("folder", "--data.path", images, *IMAGES)
    run = Path("runs/folder")
    assert "report: runs/folder/report.html" in capsys.readouterr().out
    names = {*CLASSIFIER_RUN, "samples.json"}
    assert {path.name for path in run.iterdir()} == names
    summary = json.loads((run / "summary.json").read_text())
    assert summary["steps"] == 6 and summary["versions"]["torch"] and 0 <= summary["metrics"]["accuracy"] <= 1
    page = (run / "report.html").read_text()
    assert '<a href="explore.html">' in page and "test sample " in (run / "explore.html").read_text()
    assert page.count("<svg") == 5 and "http://" not in page.replace("http://www.w3.org", "")
    assert [row["step"] for row in map(json.loads, (run / "metrics.jsonl").open())] == [1, 6]

    other = images.parent / "other"
    other.mkdir()
    (images / "red" / "0.png").rename(other / "1.png")
    monkeypatch.setattr(
        "sys.argv", ["predict", str(run), str(images / "red" / "1.png"), str(other / "1.png"), "--plots=plots"]
    )
    predict_command("predict", Arguments, predict)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 and "red " in lines[0] and "blue " in lines[0] and "%" in lines[0]
    assert sorted(path.name for path in Path("plots").iterdir()) == ["1-1.png", "1-2.png"]

    train("folder", "--data.path", images, *IMAGES)
    assert Path("runs/folder-2/report.html").exists()


def test_classes_and_folders_of_any_name_are_written(images):
    """Bytes that are no UTF-8, line breaks, what HTML and matplotlib take for their own, long ones."""
    names = [os.fsdecode(b"caf\xe9"), "a\nb", r"$\foo$ $_$", "<b>&'", "x" * 250, "日本", "{0} %s"]
    root = images.parent / os.fsdecode(b"data\xff")
    for number, name in enumerate(names):
        (root / name).mkdir(parents=True)
        for label in ("red", "blue", "third"):  # three samples of a class are enough for three splits
            source = images / ("red" if label == "third" else label) / f"{number}.png"
            (root / name / os.fsdecode(b"\xfe%s.png" % label.encode())).write_bytes(
                source.read_bytes() + label.encode()
            )
    train("folder", "--data.path", root, *IMAGES)
    run = Path("runs/folder")
    config = json.loads((run / "config.json").read_text(encoding="utf-8"))
    assert Path(config["data"]["path"]) == root
    assert set(config["model"]["labels"]) == {r"caf\xe9", r"a\nb", *names[2:]}
    page = (run / "report.html").read_text(encoding="utf-8")
    assert str(escape("<b>&'")) in page and r"caf\xe9" in page
    assert r"data\xff" in (run / "model" / "README.md").read_text(encoding="utf-8")


def test_resuming_by_command_goes_on_with_the_runs_own_settings(images, capsys):
    train("folder", "--data.path", images, *IMAGES, "--out", "here")
    train("folder", "--out", "here", "--resume", "--train.steps", "9")
    config = json.loads(Path("here/config.json").read_text())
    assert config["train"]["steps"] == 9 and config["model"]["encoder"]["dim"] == 16
    assert json.loads(Path("here/summary.json").read_text())["steps"] == 9


def test_a_misspelt_option_gets_a_suggestion(capsys):
    with pytest.raises(SystemExit) as exit:
        train("digits", "--train.stepz", "5")
    assert exit.value.code == 2
    assert "--train.steps" in capsys.readouterr().err


def test_classes_that_look_like_formulas(images, capsys):
    (images / "red").rename(images / "usd_$0_$50")
    (images / "blue").rename(images / "usd_$50_$100 <b>猫")
    train("folder", "--data.path", images, *IMAGES)
    page = Path("runs/folder/report.html").read_text(encoding="utf-8")
    assert "usd_$50_$100 &lt;b&gt;猫" in page and "<b>猫" not in page


@pytest.mark.parametrize("channels", [1, 4])
def test_training_on_other_channels(channels, images):
    train("folder", "--data.path", images, *IMAGES, "--model.channels", channels, "--data.augment.policy", "")
    model = ViT.from_run("runs/folder")
    assert model.config.channels == channels and len(model.config.preprocess.mean) == 1


def listed(images, label):
    """A manifest of the images; label: of a class and the number of an image."""
    rows = [f"{images}/{c}/{n}.png,{label(c, n)}" for c in ("red", "blue") for n in range(10)]
    Path("list.csv").write_text("path,label\n" + "\n".join(rows))
    return ["manifest", "--data.path", "list.csv", *IMAGES]


def test_several_labels_are_trained_and_predicted(images, capsys, monkeypatch):
    argv = listed(images, lambda c, n: f"{c};{'odd' if n % 2 else 'even'}")
    train(*argv, "--data.multilabel", "--data.augment.mixup", "0.4", "--data.augment.cutmix", "1.0")
    assert "test mAP" in capsys.readouterr().out
    assert "Per-label metrics" in Path("runs/manifest/report.html").read_text()
    monkeypatch.setattr("sys.argv", ["predict", "runs/manifest", f"{images}/blue/3.png", "--top", "4"])
    predict_command("predict", Arguments, predict)
    probabilities = [float(p) for p in re.findall(r"(\d+\.\d)%", capsys.readouterr().out)]
    model = ViT.from_pretrained("runs/manifest/model").eval()
    image = eval_transform(model.config.image_format)(read_image(images / "blue" / "3.png", "RGB"))
    expected = model(image[None])[0].sigmoid().sort(descending=True).values * 100
    assert probabilities == pytest.approx(expected.tolist(), abs=0.06)


def test_a_number_is_learnt_and_predicted(images, capsys, monkeypatch):
    """How red an image is: the two kinds of images are 200 apart."""
    options = ["--data.target", "number", "--train.steps", "40", "--train.lr", "3e-3"]
    train(*listed(images, lambda c, n: 1200 + n % 3 if c == "red" else 1000 + n % 3), *options)
    assert "test r2" in capsys.readouterr().out
    assert "Largest errors" in Path("runs/manifest/report.html").read_text()
    monkeypatch.setattr(
        "sys.argv", ["predict", "runs/manifest", f"{images}/red/3.png", f"{images}/blue/4.png", "--plots=plots"]
    )
    predict_command("predict", Arguments, predict)
    red, blue = (float(line.split(": ")[1].split()[0]) for line in capsys.readouterr().out.splitlines())
    assert 1150 < red < 1250 and 950 < blue < 1050
    assert len([*Path("plots").iterdir()]) == 2
    monkeypatch.setattr("sys.argv", ["predict", "runs/manifest", f"{images}/red/3.png", "--top", "1"])
    with pytest.raises(SystemExit):
        predict_command("predict", Arguments, predict)
    assert "predicts no classes" in capsys.readouterr().err


def test_numbers_that_are_all_equal_are_nothing_to_learn(images, capsys):
    with pytest.raises(SystemExit):
        train(*listed(images, lambda c, n: 7), "--data.target", "number")
    assert "All labels to learn from are 7" in capsys.readouterr().err and not Path("runs").exists()


@pytest.mark.parametrize("out", [".", "run", "red/run"])
def test_a_run_is_not_among_its_data(out, images, capsys):
    before = sorted(images.rglob("*"))
    with pytest.raises(SystemExit):
        train("folder", "--data.path", images, "--out", images / out, "--train.steps", "1")
    assert "all of whose files are data: name a directory elsewhere by --out" in capsys.readouterr().err
    assert sorted(images.rglob("*")) == before


@pytest.mark.parametrize(
    "options, words",
    [
        (["--data.multilabel"], "--data.multilabel is for labels as classes"),
        (["--data.per-class", "2"], "--data.per-class is for samples of one class each"),
        (["--data.augment.cutmix", "1.0"], "--data.augment.cutmix is for classes"),
        (["--train.class-balance", "weights"], "--train.class-balance"),
        (["--train.label-smoothing", "0.2"], "--train.label-smoothing has no effect"),
        (["--distill.teacher", "vit_tiny_patch16_224"], "--distill.teacher"),
    ],
)
def test_what_is_about_classes_is_refused_for_numbers(options, words, images, capsys):
    with pytest.raises(SystemExit):
        train(*listed(images, lambda c, n: n), "--data.target", "number", *options)
    assert words in capsys.readouterr().err
    assert not Path("runs").exists()
