"""The prediction command: what it prints and draws, and what it refuses."""

import os
import re
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from audio_peers import make_waveform
from transformers import Wav2Vec2FeatureExtractor

from audio import AST, ASTConfig
from audio.predict import Arguments, predict
from core import EncoderConfig
from core.experiments import predict_command

pytestmark = pytest.mark.usefixtures("elsewhere")


def test_long_recordings_in_windows_or_in_one_pass(capsys, monkeypatch):
    model = tiny_model(classes=2, max_frames=400, labels=("a", "b"))
    sound = np.random.default_rng(0).normal(0, 0.1, 16_000 * 3).astype("float32")
    soundfile.write("long.wav", sound, 16_000, subtype="FLOAT")
    wave = torch.from_numpy(sound)

    def run(*options):
        monkeypatch.setattr("sys.argv", ["predict", "run", "long.wav", "--top", "2", *options])
        predict_command("predict", Arguments, predict)
        out = capsys.readouterr().out
        return dict(re.findall(r"\b([ab]) (\d+\.\d)%", out)), out

    def probabilities(*starts, size):
        with torch.no_grad():
            return torch.stack([model(wave[None, s : s + size])[0].softmax(-1) for s in starts]).mean(0) * 100

    for options, expected, words in [
        ([], probabilities(0, size=48_000), "long.wav: "),
        # 1.25 s at a hop of 1 s: the last window ends with the clip.
        (["--window", "1.25", "--hop", "1"], probabilities(0, 16_000, 28_000, size=20_000), "long.wav: "),
        (["--window", "2"], probabilities(0, 16_000, size=32_000), "long.wav: "),
        (["--window", "5"], probabilities(0, size=48_000), "long.wav: "),
    ]:
        found, out = run(*options)
        assert words in out
        assert [float(found[name]) for name in "ab"] == pytest.approx(expected.tolist(), abs=0.06)


def tiny_model(**changes) -> AST:
    torch.manual_seed(0)
    config = {"n_mels": 16, "max_frames": 60, "patch_size": 8, "stride": 8, "classes": 2, **changes}
    model = AST(ASTConfig(**config, encoder=EncoderConfig(dim=8, depth=1, heads=1))).eval()
    torch.nn.init.normal_(model.head.weight, std=1.0)
    model.save_pretrained("run")
    return model


@pytest.mark.parametrize(
    "argv, words",
    [
        (["nowhere", "a.wav"], "nowhere holds no trained model"),
        (["run"], "Name at least one audio file"),
        (["run", "missing.wav"], "no audio file missing.wav"),
        (["run", "broken.wav"], "broken.wav is not an audio file"),
        (["run", "fine.wav", "broken.wav"], "broken.wav is not an audio file"),
        (["run", "cut.flac"], "cut.flac is not an audio file that can be read, or is broken: flac decoder lost sync"),
        (["run", "nan.wav"], "nan.wav holds samples that are not numbers"),
        (["run", "fine.wav", "long.wav"], "long.wav: a clip of 2.00 s"),
        (["run", "long.wav", "--window", "1"], "long.wav: a clip of 1.00 s"),
        (["run", "fine.wav", "--top", "0"], "--top must be at least 1"),
        (["run", "fine.wav", "--window", "0"], "--window must be more than 0"),
        (["run", "fine.wav", "--hop", "1"], "--hop needs --window"),
        (["run", "long.wav", "--window", "1e-3"], "--window 0.001 is shorter than a frame of the model"),
        (
            ["run", "long.wav", "--window", "0.1", "--hop", "1e-9"],
            "--hop 1e-09 is less than the model's step from frame",
        ),
        (
            ["run", "long.wav", "--window", "0.1", "--hop", "0.01"],
            "would be cut into 191 windows, more than 100: set a",
        ),
        (["run", "/dev/zero"], "/dev/zero is a pipe, socket or device"),
        (
            ["run", "."],
            "4 of 5 inputs could not be predicted, and the lines above say why; the first: broken.wav is not",
        ),
    ],
)
def test_predicting_from_bad_input(argv, words, capsys, monkeypatch):
    tiny_model()
    noise = np.random.default_rng(0).normal(0, 0.1, 32_000)
    Path("broken.wav").write_text("not a sound")
    soundfile.write("fine.wav", noise[:4000], 16_000)
    soundfile.write("long.wav", noise, 16_000)
    soundfile.write("nan.wav", np.full(4000, np.nan), 16_000, subtype="FLOAT")
    soundfile.write("cut.flac", noise, 16_000)
    Path("cut.flac").write_bytes(Path("cut.flac").read_bytes()[:20_000])
    monkeypatch.setattr("audio.predict.MOST", 100)
    monkeypatch.setattr("sys.argv", ["predict", *argv])
    monkeypatch.setattr("sys.stdin", None)
    with pytest.raises(SystemExit) as exit:
        predict_command("predict", Arguments, predict)
    captured = capsys.readouterr()
    rows = captured.out.splitlines()
    assert exit.value.code == 1 and (not rows or sum(": error: " in row for row in rows) in range(1, len(rows)))
    assert captured.err.startswith("error: ") and words in captured.err and captured.err.count("\n") == 1


def test_silence_and_a_single_sample_are_predicted(capsys, monkeypatch):
    tiny_model()
    soundfile.write("silence.wav", np.zeros(4000), 16_000)
    soundfile.write("click.wav", np.ones(1) * 0.5, 16_000)
    monkeypatch.setattr("sys.argv", ["predict", "run", "silence.wav", "click.wav"])
    predict_command("predict", Arguments, predict)
    out = capsys.readouterr().out
    assert out.count("%") == 4 and "nan" not in out


def run_predict(monkeypatch, capsys, *argv):
    monkeypatch.setattr("sys.argv", ["predict", "run", *map(str, argv)])
    predict_command("predict", Arguments, predict)
    return [Path(found) for found in re.findall(r"attention: (.*)\)", capsys.readouterr().out)]


def test_pictures_never_take_the_place_of_clips_or_of_each_other(tmp_path, capsys, monkeypatch):
    Path("in/b").mkdir(parents=True)
    names = ["a.wav", "b/a.wav", "a-1.wav", "x.wav", "x.flac", "X.wav", "y.png", "z.wav", "z.png"]
    clips = [Path("in") / name for name in names]
    for clip in clips:
        soundfile.write(clip, np.random.default_rng(0).normal(0, 0.1, 4000), 16_000, format="WAV")
    os.link("in/y.png", "in/a-2.png")  # a clip by another name
    tiny_model()
    before = {clip: clip.read_bytes() for clip in clips}
    pictures = run_predict(monkeypatch, capsys, *clips, "--plots", "in")
    assert {clip: clip.read_bytes() for clip in clips} == before
    assert len({path.name.lower() for path in pictures}) == len(names)
    assert all(picture.read_bytes()[:4] == b"\x89PNG" for picture in pictures)


def test_long_silence_of_any_rate_is_predicted_in_windows(capsys, monkeypatch):
    """Its windows are not all in memory at once."""
    tiny_model(max_frames=400)
    soundfile.write("silence.flac", np.zeros(300 * 8_000, dtype="int16"), 8_000)
    batches, forward = [], AST.forward
    monkeypatch.setattr(AST, "forward", lambda self, clips: batches.append([*map(len, clips)]) or forward(self, clips))
    run_predict(monkeypatch, capsys, "silence.flac", "--window", "4", "--hop", "5")
    assert sum(map(len, batches)) == 61 and max(batches, key=len) == 16 * [64_000]


def test_a_stock_checkpoint(tmp_path, monkeypatch, capsys):
    peer, extractor = make_waveform("Wav2Vec2", "ForSequenceClassification"), Wav2Vec2FeatureExtractor()
    for part in (peer, extractor):
        part.save_pretrained(tmp_path / "stock")
    clip = 0.1 * np.random.default_rng(0).normal(size=8_000).astype(np.float32)
    soundfile.write(tmp_path / "noise.wav", clip, 16_000, subtype="FLOAT")
    with torch.no_grad():
        given = extractor(clip, sampling_rate=16_000, return_tensors="pt")
        best, label = peer(**given).logits.softmax(dim=1)[0].max(dim=0)
    predicted = ["predict", str(tmp_path / "stock"), str(tmp_path / "noise.wav"), "--top", "1"]
    monkeypatch.setattr("sys.argv", predicted)
    predict_command("predict", Arguments, predict)
    assert capsys.readouterr().out.split()[1:] == [f"LABEL_{label}", f"{best:.1%}"]
