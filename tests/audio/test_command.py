"""The training command: it works, and can be resumed."""

import json
import re
from pathlib import Path

import pytest
import soundfile
import torch
from small_runs import CLASSIFIER_RUN, CLIPS

from audio import AST
from audio.predict import Arguments, predict
from audio.train import AUDIO
from core.experiments import predict_command, train_command

pytestmark = pytest.mark.usefixtures("elsewhere")


def train(*argv):
    train_command(AUDIO, [str(a) for a in argv])


def test_folder_run_leaves_a_whole_run_and_predicts(clips, capsys, monkeypatch):
    train("folder", "--data.path", clips, *CLIPS, "--data.augment.mixup", "0.4")
    run = Path("runs/folder")
    assert "report: runs/folder/report.html" in capsys.readouterr().out
    names = {*CLASSIFIER_RUN, "samples.json"}
    assert {path.name for path in run.iterdir()} == names
    assert 0 <= json.loads((run / "summary.json").read_text())["metrics"]["accuracy"] <= 1
    page = (run / "report.html").read_text()
    assert page.count("<svg") == 5 and "Attention" in page

    other = clips.parent / "other"
    other.mkdir()
    (clips / "high" / "0.wav").rename(other / "1.wav")
    monkeypatch.setattr(
        "sys.argv", ["predict", str(run), str(clips / "high" / "1.wav"), str(other / "1.wav"), "--plots=plots"]
    )
    predict_command("predict", Arguments, predict)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 and "high " in lines[0] and "low " in lines[0] and "%" in lines[0]
    assert sorted(path.name for path in Path("plots").iterdir()) == ["1-1.png", "1-2.png"]


def test_a_number_is_learnt_and_predicted(clips, capsys, monkeypatch):
    """Of clips in two kinds, which are 200 apart."""
    rows = [f"folder/{c}/{n}.wav,{1000 + 200 * (c == 'high') + n % 3}" for c in ("high", "low") for n in range(10)]
    Path("list.csv").write_text("path,label\n" + "\n".join(rows))
    options = ["--data.target", "number", "--train.steps", "40", "--train.lr", "3e-3"]
    train("manifest", "--data.path", "list.csv", *CLIPS, *options)
    assert "test r2" in capsys.readouterr().out
    monkeypatch.setattr(
        "sys.argv", ["predict", "runs/manifest", "folder/high/3.wav", "folder/low/4.wav", "--plots=plots"]
    )
    predict_command("predict", Arguments, predict)
    high, low = (float(line.split(": ")[1].split()[0]) for line in capsys.readouterr().out.splitlines())
    assert 1150 < high < 1250 and 950 < low < 1050


def test_several_labels_are_trained_and_predicted(clips, capsys, monkeypatch):
    rows = [f"folder/{c}/{n}.wav,{c};{'odd' if n % 2 else 'even'}" for c in ("high", "low") for n in range(10)]
    Path("list.csv").write_text("path,label\n" + "\n".join(rows))
    train("manifest", "--data.path", "list.csv", "--data.multilabel", *CLIPS, "--data.augment.mixup", "0.4")
    assert "test mAP" in capsys.readouterr().out
    assert "Per-label metrics" in Path("runs/manifest/report.html").read_text()
    monkeypatch.setattr("sys.argv", ["predict", "runs/manifest", "folder/low/3.wav", "--top", "4"])
    predict_command("predict", Arguments, predict)
    probabilities = [float(p) for p in re.findall(r"(\d+\.\d)%", capsys.readouterr().out)]
    model = AST.from_pretrained("runs/manifest/model").eval()
    sound = torch.from_numpy(soundfile.read("folder/low/3.wav", dtype="float32")[0])
    expected = model(sound[None])[0].sigmoid().sort(descending=True).values * 100
    assert probabilities == pytest.approx(expected.tolist(), abs=0.06)
