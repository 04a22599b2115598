"""The command lines: they work, and a user's mistake gets one sentence, exit code 1, and leaves nothing behind."""

import html
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from core import EncoderConfig
from core.experiments import predict_command, train_command
from vision import ViT, ViTConfig
from vision.predict import Arguments, predict
from vision.train import VISION

SHORT = ["--train.steps", "6", "--train.batch-size", "8", "--train.eval-every", "6", "--train.warmup", "2"]
SMALL = ["--model.image-size", "8", "--model.patch-size", "4", "--model.dim", "16", "--model.heads", "2"]
SMALL += ["--model.depth", "1"]
FOLDER = [*SHORT, *SMALL, "--train.accumulate", "2", "--train.workers", "0", "--train.precision", "fp32"]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def train(*argv):
    train_command(VISION, [str(a) for a in argv])


def test_folder_run_leaves_a_whole_run_and_predicts(pictures, capsys, monkeypatch):
    train("folder", "--data.path", pictures, *FOLDER)
    run = Path("runs/folder")
    assert "report: runs/folder/report.html" in capsys.readouterr().out
    names = {"config.json", "metrics.jsonl", "summary.json", "checkpoints", "model", "report.html", "tensorboard"}
    names |= {"samples.json"}
    assert {path.name for path in run.iterdir()} == names
    summary = json.loads((run / "summary.json").read_text())
    assert summary["steps"] == 6 and summary["versions"]["torch"] and 0 <= summary["metrics"]["accuracy"] <= 1
    page = (run / "report.html").read_text()
    assert page.count("<svg") == 5 and "http://" not in page.replace("http://www.w3.org", "")
    assert [row["step"] for row in map(json.loads, (run / "metrics.jsonl").open())] == [1, 6]

    other = pictures.parent / "other"
    other.mkdir()
    (pictures / "red" / "0.png").rename(other / "1.png")
    monkeypatch.setattr("sys.argv", ["predict", str(run), str(pictures / "red" / "1.png"), str(other / "1.png")])
    predict_command("predict", Arguments, predict)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 and "red " in lines[0] and "blue " in lines[0] and "%" in lines[0]
    assert sorted(path.name for path in (run / "predictions").iterdir()) == ["1-1.png", "1-2.png"]

    train("folder", "--data.path", pictures, *FOLDER)
    assert Path("runs/folder-2/report.html").exists()


def test_classes_and_folders_of_any_name_are_written(pictures):
    """Bytes that are no UTF-8, line breaks, what HTML and matplotlib take for their own, long ones."""
    names = [os.fsdecode(b"caf\xe9"), "a\nb", r"$\foo$ $_$", "<b>&'", "x" * 250, "日本", "{0} %s"]
    root = pictures.parent / os.fsdecode(b"data\xff")
    for number, name in enumerate(names):
        (root / name).mkdir(parents=True)
        for label in ("red", "blue"):
            (pictures / label / f"{number}.png").rename(root / name / os.fsdecode(b"\xfe%s.png" % label.encode()))
    (pictures / "red" / "7.png").rename(root / "日本" / "third.png")
    train("folder", "--data.path", root, *FOLDER)
    run = Path("runs/folder")
    config = json.loads((run / "config.json").read_text(encoding="utf-8"))
    assert Path(config["data"]["path"]) == root
    assert set(config["model"]["labels"]) == {r"caf\xe9", r"a\nb", *names[2:]}
    page = (run / "report.html").read_text(encoding="utf-8")
    assert html.escape("<b>&'") in page and r"caf\xe9" in page
    assert r"data\xff" in (run / "model" / "README.md").read_text(encoding="utf-8")


def test_resuming_by_command_goes_on_with_the_runs_own_settings(pictures, capsys):
    train("folder", "--data.path", pictures, *FOLDER, "--out", "here")
    train("folder", "--out", "here", "--resume", "--train.steps", "9")
    config = json.loads(Path("here/config.json").read_text())
    assert config["train"]["steps"] == 9 and config["model"]["encoder"]["dim"] == 16
    assert json.loads(Path("here/summary.json").read_text())["steps"] == 9


def mistake_no_path(pictures):
    return ["folder"], "need --data.path"


def mistake_path_missing(pictures):
    return ["folder", "--data.path", "nowhere"], "nowhere is not a directory"


def mistake_empty_class(pictures):
    (pictures / "green").mkdir()
    return ["folder", "--data.path", pictures], "green is a class without files"


def mistake_one_class(pictures):
    (pictures / "red").rename(pictures.parent / "red")
    return ["folder", "--data.path", pictures], "1 class: at least two are needed"


def mistake_single_file(pictures):
    for number in range(1, 10):
        (pictures / "red" / f"{number}.png").unlink()
    return ["folder", "--data.path", pictures], "'red' has a single sample"


def mistake_truncated_image(pictures):
    for path in (pictures / "red").iterdir():
        path.write_bytes(path.read_bytes()[:200])
    return ["folder", "--data.path", pictures, *FOLDER], r"red/\d.png cannot be read"


def mistake_truncated_image_in_a_worker(pictures):
    argv, words = mistake_truncated_image(pictures)
    return [*argv, "--train.workers", "1"], words


def mistake_not_an_image(pictures):
    for path in (pictures / "red").iterdir():
        path.write_text("hello")
    return ["folder", "--data.path", pictures, *FOLDER], r"red/\d.png is not an image"


def mistake_manifest_missing(pictures):
    return ["manifest", "--data.path", "list.csv"], "no manifest list.csv"


def mistake_manifest_column(pictures):
    Path("list.csv").write_text("path,class\na.png,red\n")
    return ["manifest", "--data.path", "list.csv"], "list.csv has no column 'label'; its columns are: path, class"


def mistake_manifest_row(pictures):
    Path("list.csv").write_text("path,label\nfolder/red/0.png,red\nfolder/red/1.png,\n")
    return ["manifest", "--data.path", "list.csv"], "list.csv, row 2 has no 'label'"


def mistake_manifest_file(pictures):
    Path("list.csv").write_text("path,label\nfolder/red/0.png,red\nfolder/red/99.png,blue\n")
    return ["manifest", "--data.path", "list.csv"], "row 2: there is no file folder/red/99.png"


def mistake_manifest_json(pictures):
    Path("list.jsonl").write_text('{"path": "folder/red/0.png", "label": "red"}\n{"path": \n')
    return ["manifest", "--data.path", "list.jsonl"], "list.jsonl, row 2 is not JSON"


def mistake_manifest_split(pictures):
    Path("list.csv").write_text("path,label,split\nfolder/red/0.png,red,train\nfolder/blue/0.png,blue,later\n")
    return ["manifest", "--data.path", "list.csv"], "row 2: split is 'later', but must be 'train', 'val' or 'test'"


def mistake_manifest_is_a_pipe(pictures):
    os.mkfifo("list.csv")
    return ["manifest", "--data.path", "list.csv"], "list.csv is a pipe, socket or device, not a manifest"


def mistake_a_pipe_in_a_manifest(pictures):
    os.mkfifo("pipe.png")
    Path("list.csv").write_text("path,label\nfolder/red/0.png,red\npipe.png,blue\n")
    return ["manifest", "--data.path", "list.csv"], "list.csv, row 2: pipe.png is a pipe, socket or device"


def mistake_splits_and_classes(pictures):
    (pictures / "red").rename(pictures.parent / "red")
    (pictures / "train").mkdir()
    (pictures.parent / "red").rename(pictures / "train" / "red")
    return ["folder", "--data.path", pictures], r"folder mixes a split \(train\) with classes \(blue\)"


def mistake_manifest_unlearnt(pictures):
    Path("list.csv").write_text("path,label,split\nfolder/red/0.png,red,train\nfolder/blue/0.png,blue,test\n")
    return ["manifest", "--data.path", "list.csv"], "label 'blue' is only in the test split"


def mistake_image_size(pictures):
    return ["folder", "--data.path", pictures, *FOLDER, "--model.image-size", "9"], "choose 8 or 12 pixels"


def mistake_heads(pictures):
    return ["folder", "--data.path", pictures, *FOLDER, "--model.heads", "3"], "16 is not divisible by 3 heads"


def mistake_experiment(pictures):
    return ["digit"], "no experiment 'digit': did you mean 'digits'"


def mistake_taken_directory(pictures):
    Path("mine").mkdir()
    Path("mine/config.json").write_text("{}")
    return ["digits", "--out", "mine"], "mine already holds a run"


def mistake_out_is_a_file(pictures):
    Path("mine").write_text("text")
    return ["digits", "--out", "mine"], "mine is a file"


def mistake_nothing_to_resume(pictures):
    return ["digits", "--resume"], "runs/digits holds no run to resume"


def mistake_accumulation(pictures):
    return ["digits", "--train.accumulate", "7"], "cannot be cut into 7 equal micro-batches"


def mistake_policy(pictures):
    return [
        "folder",
        "--data.path",
        pictures,
        *FOLDER,
        "--data.augment.policy",
        "magic",
    ], "'magic' is not one that timm"


def mistake_cache(pictures):
    inside = f"{pictures}/cache"
    return ["folder", "--data.path", pictures, *FOLDER, "--data.cache", inside], "name a directory elsewhere"


def mistake_dropout_of_a_lora(pictures):
    return ["digits", "--lora.dropout", "1.5"], "--lora.dropout must be less than 1, not 1.5"


def mistake_start(pictures):
    return ["digits", "--init", ""], "--init is empty"


def mistake_fraction(pictures):
    return ["digits", "--data.test-fraction", "1.5"], "--data.test-fraction must be less than 1, not 1.5"


MISTAKES = [value for name, value in list(globals().items()) if name.startswith("mistake_")]


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda m: m.__name__.removeprefix("mistake_"))
def test_a_mistake_gets_one_sentence(mistake, pictures, capsys):
    argv, words = mistake(pictures)
    with pytest.raises(SystemExit) as exit:
        train(*argv)
    assert exit.value.code == 1
    error = capsys.readouterr().err.split("error: ")[-1]
    assert len(error.strip().splitlines()) == 1 and "Traceback" not in error
    import re

    assert re.search(words, error), error
    if "cannot be read" not in words and "not an image" not in words:  # those are found out while training
        assert not Path("runs").exists()


def test_a_misspelt_option_gets_a_suggestion(capsys):
    with pytest.raises(SystemExit) as exit:
        train("digits", "--train.stepz", "5")
    assert exit.value.code == 2
    assert "--train.steps" in capsys.readouterr().err


@pytest.fixture
def run():
    """A model of two classes in the directory run, and images beside it."""
    encoder = EncoderConfig(dim=8, depth=1, heads=1)
    model = ViT(ViTConfig(image_size=8, patch_size=4, classes=2, encoder=encoder))
    model.save_pretrained("run")
    Path("broken.png").write_text("not a picture")
    Image.fromarray(np.zeros((8, 8, 3), dtype=np.uint8)).save("fine.png")
    return model


def predicted(monkeypatch, capsys, *argv, code=0):
    """What predict printed, or the sentence that it ended with."""
    monkeypatch.setattr("sys.argv", ["predict", *map(str, argv)])
    if not code:
        predict_command("predict", Arguments, predict)
        return capsys.readouterr().out.splitlines()
    with pytest.raises(SystemExit) as exit:
        predict_command("predict", Arguments, predict)
    captured = capsys.readouterr()
    assert exit.value.code == code and captured.out == "" and captured.err.count("\n") == 1
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
        (["run", "fine.png", "."], ". is a directory, not an image"),
        (["run", "/dev/zero"], "/dev/zero is a pipe, socket or device, not an image"),
        (["run", "fine.png", "--out", "broken.png"], "broken.png cannot hold the output"),
        (["run", "fine.png", "--out", "broken.png/in"], "broken.png/in cannot hold the output"),
        (["run", "fine.png", "--out", "/proc/nothing"], "/proc/nothing cannot hold the output"),
        (["run", "fine.png", "--out", "/proc/self"], "cannot be read or written"),
        (["run", "fine.png", "--out", "x" * 300], "cannot hold the output (File name too long)"),
    ],
)
def test_predicting_from_bad_input(argv, words, run, capsys, monkeypatch, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    error = predicted(monkeypatch, capsys, *argv, code=1)
    assert error.startswith("error: ") and words in error
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_predictions_that_are_no_numbers_are_refused(value, run, capsys, monkeypatch):
    with torch.no_grad():
        run.head.bias[1] = value
    run.save_pretrained("run")
    error = predicted(monkeypatch, capsys, "run", "fine.png", code=1)
    assert "The model in run predicts values that are not finite numbers" in error
    assert not Path("run/predictions").exists()


def test_predictions_never_overwrite_an_input(run, capsys, monkeypatch):
    Path("in").mkdir()
    Path("other").mkdir()
    Path("in/x.png").write_bytes(Path("fine.png").read_bytes())
    Path("other/x.png").symlink_to("../in/x.png")
    os.link("in/x.png", "in/linked.png")
    before = Path("in/x.png").read_bytes()
    predicted(monkeypatch, capsys, "run", "in/x.png", "--out", "in")
    predicted(monkeypatch, capsys, "run", "in/x.png", "in/linked.png", "in/x-2.png", "--out", "in")
    predicted(monkeypatch, capsys, "run", "other/x.png", "--out", "in")
    predicted(monkeypatch, capsys, "run", "other/x.png", "--out", "other")
    assert Path("in/x.png").read_bytes() == before == Path("in/linked.png").read_bytes()
    assert sorted(path.name for path in Path("other").iterdir()) == ["x-2.png", "x.png"]
    inside = ["linked-2.png", "linked.png", "x-2-2.png", "x-2.png", "x-3.png", "x-4.png", "x.png"]
    assert sorted(path.name for path in Path("in").iterdir()) == inside


def test_pictures_are_made_though_nobody_reads_what_is_printed(run, monkeypatch):
    for number in range(3):
        Image.new("RGB", (8, 8)).save(f"{number}.png")
    monkeypatch.setattr("sys.argv", ["predict", "run", "0.png", "1.png", "2.png", "--out", "made"])
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
    lines = predicted(monkeypatch, capsys, "run", "a.png", "b/a.png", "a.jpg", "A.png")
    pictures = [line.rpartition("attention: ")[2].rstrip(")") for line in lines]
    assert len({name.casefold() for name in pictures}) == 4 and all(Path(name).is_file() for name in pictures)


def test_names_that_are_no_text(run, capsys, monkeypatch):
    odd = os.fsdecode(b"\xff.png")
    Path("fine.png").rename(odd)
    [line] = predicted(monkeypatch, capsys, "run", odd, "--out", os.fsdecode(b"to\xfe"))
    assert line.startswith("\\udcff.png: ") and os.path.exists(b"to\xfe/\xff.png")


def test_a_16_bit_image_is_predicted_as_its_8_bit_copy(run, capsys, monkeypatch):
    Path("deep").mkdir()
    greys = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4
    Image.fromarray(greys).save("grey.png")
    Image.fromarray(greys.astype(np.uint16) * 257).save("deep/grey.png")
    one, other = predicted(monkeypatch, capsys, "run", "grey.png", "deep/grey.png")
    assert one.split(":")[1].split("(")[0] == other.split(":")[1].split("(")[0]


def test_classes_that_look_like_formulas(pictures, capsys):
    (pictures / "red").rename(pictures / "usd_$0_$50")
    (pictures / "blue").rename(pictures / "usd_$50_$100 <b>猫")
    train("folder", "--data.path", pictures, *FOLDER)
    page = Path("runs/folder/report.html").read_text(encoding="utf-8")
    assert "usd_$50_$100 &lt;b&gt;猫" in page and "<b>猫" not in page


@pytest.mark.parametrize("channels", [1, 4])
def test_training_on_other_channels(channels, pictures):
    train("folder", "--data.path", pictures, *FOLDER, "--model.channels", channels, "--data.augment.policy", "")
    model = ViT.from_run("runs/folder")
    assert model.config.channels == channels and len(model.config.preprocess.mean) == 1
