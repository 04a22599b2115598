"""Models of waveforms in whole runs: fine-tuned, predicted with, exported."""

import json
import re
from pathlib import Path

import pytest
import soundfile
import torch
from audio_peers import make_waveform
from plain import train_plainly
from small_runs import FILES, SHORT
from transformers import Wav2Vec2FeatureExtractor

from audio import WaveformModel
from audio.predict import Arguments, predict
from audio.pretrained import load_pretrained
from audio.train import AUDIO
from core.experiments import predict_command

pytestmark = pytest.mark.usefixtures("elsewhere")
SMALL = {"conv_dim": (16,) * 7, "hidden_size": 24, "num_hidden_layers": 2}


@pytest.fixture
def start(tmp_path):
    """A directory of transformers."""
    folder = tmp_path / "stock"
    make_waveform("Wav2Vec2", **SMALL).save_pretrained(folder)
    Wav2Vec2FeatureExtractor().save_pretrained(folder)
    return folder


def train(*argv):
    train_plainly(AUDIO, argv)


def test_masked_autoencoding_is_of_spectrograms(start, clips, capsys):
    with pytest.raises(SystemExit):
        train("folder", "--data.path", clips, "--init", start, "--masked.ratio", "0.5", *SHORT, *FILES)
    assert "takes waveforms, and each of its tokens sees the sound around it" in capsys.readouterr().err


def test_the_tokens_of_waveforms_are_none_that_a_spectrogram_has(start, clips, capsys):
    with pytest.raises(SystemExit):
        train("adapt", "--data.path", clips, "--distill.teacher", start, *SHORT, *FILES)
    assert "makes no tokens of patches of a spectrogram: name an AST" in capsys.readouterr().err


@pytest.mark.parametrize("tune", ["full", "lora"])
def test_fine_tuning_from_a_checkpoint_and_predictions(tune, start, clips, capsys, monkeypatch):
    train("folder", "--data.path", clips, "--init", start, "--tune", tune, *SHORT, *FILES, "--out", "run")
    assert "test accuracy" in capsys.readouterr().out
    model = WaveformModel.from_run("run", "audio")
    assert model.config.labels == ("high", "low")
    before, after = load_pretrained(str(start)).state_dict(), model.state_dict()
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    if tune == "full":
        assert "embed.convolutions.0.conv.weight" in changed
    else:
        assert changed and all(key.endswith("qkv.weight") for key in changed)
    monkeypatch.setattr("sys.argv", ["predict", "run", str(clips / "high" / "1.wav"), "--top", "2"])
    predict_command("predict", Arguments, predict)
    found = dict(re.findall(r"\b(high|low) (\d+\.\d)%", capsys.readouterr().out))
    sound = torch.from_numpy(soundfile.read(clips / "high" / "1.wav", dtype="float32")[0])
    with torch.no_grad():
        expected = model(sound[None])[0].softmax(-1) * 100
    assert [float(found[name]) for name in ("high", "low")] == pytest.approx(expected.tolist(), abs=0.06)


def test_a_run_is_resumed_and_started_from(start, clips):
    options = ["folder", "--data.path", clips, *SHORT, *FILES]
    train(*options, "--init", start, "--out", "one")
    train(*options, "--init", "one", "--out", "two")
    assert WaveformModel.from_run("two").config == WaveformModel.from_run("one").config
    train("folder", "--out", "one", "--resume", "--train.steps", "8")
    assert json.loads(Path("one/metrics.jsonl").read_text().splitlines()[-1])["step"] == 8
