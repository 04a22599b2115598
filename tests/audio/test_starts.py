"""Training starts from every stock model of spectrograms, and ends in one that is saved whole."""

from pathlib import Path

import pytest
import torch
from audio_peers import ast_extractor, make_ast, make_whisper, padded, whisper_extractor
from audio_peers import clips as make_clips
from published_audio import PUBLISHED
from small_runs import FILES, SHORT

from audio import AST
from audio.pretrained import load_pretrained
from audio.train import AUDIO
from core.experiments import train_command


def saved(peer, extractor, folder):
    peer.save_pretrained(folder)
    extractor.save_pretrained(folder)
    return folder


def save_ast(folder):
    peer = make_ast("Model", max_length=124)
    return saved(peer, ast_extractor(peer), folder)


def save_whisper(folder):
    peer = make_whisper()
    return saved(peer, whisper_extractor(peer), folder)


pytestmark = pytest.mark.usefixtures("elsewhere", "without_figures")
STARTS = {"AST": save_ast, "Whisper": save_whisper, **PUBLISHED}


def train(*options):
    train_command(AUDIO, ["folder", *SHORT, *FILES, *map(str, options)])


@pytest.mark.filterwarnings("ignore:The checkpoint's head")
@pytest.mark.parametrize("name", ["AST", "Whisper", "AudioMAE", "EAT"])
def test_a_run_starts_from_it(name, clips, tmp_path):
    folder = tmp_path / "start"
    folder.mkdir()
    source = STARTS[name](folder)
    train("--data.path", clips, "--init", source, "--train.lr", "1e-6")
    start, tuned = load_pretrained(str(source)), AST.from_run(Path("runs/folder"))
    assert tuned.config.labels == ("high", "low") and tuned.config.features == start.config.features
    before, after = start.state_dict(), tuned.state_dict()
    assert {key for key in before if not key.startswith("head.")} == {
        key for key in after if not key.startswith("head.")
    }
    sounds = make_clips((0.9, 0.5))
    with torch.no_grad():
        found, expected = tuned.features(*padded(sounds)), start.features(*padded(sounds))
        assert 0 < (found - expected).abs().max() < 0.05 * expected.abs().max()  # trained a little, and from there
        assert tuned(sounds).shape == (2, 2)


def test_masked_autoencoding_goes_on_from_one(clips, tmp_path):
    folder = tmp_path / "start"
    folder.mkdir()
    source = PUBLISHED["EAT"](folder)
    train("--data.path", clips, "--init", source, "--masked.ratio", "0.8", "--train.lr", "1e-5")
    assert AST.from_run(Path("runs/folder")).config.classes == 0


def test_a_published_model_is_found_on_the_hub(tmp_path, monkeypatch):
    PUBLISHED["EAT"](tmp_path)
    asked = []

    def snapshot_download(name, **given):
        asked.append(name)
        return str(tmp_path)

    monkeypatch.setattr("core.models.hub.snapshot_download", snapshot_download)
    ours = load_pretrained("hf-hub:someone/EAT")
    assert set(asked) == {"someone/EAT"} and ours.config.positions == "sincos" and ours.config.classes == 7
