"""Clips without classes: read, cached and counted as others are, and learnt from by masked patches."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small_runs import CLIPS

from audio import ASTConfig
from audio.datasets import Unlabelled
from audio.decoding import read_audio
from audio.samples import collate
from audio.train import AUDIO, AudioExperiment, folder
from core.experiments import train_command
from core.objectives import MaskedConfig
from core.training.sampling import SeededDataset

FORM = ASTConfig(max_frames=100, n_mels=32).audio_format


def pretrain() -> AudioExperiment:
    """Masked patches of unlabelled clips."""
    return replace(folder(), data=Unlabelled(), masked=MaskedConfig(ratio=0.75))


@pytest.mark.parametrize("by_tokens", [False, True])
def test_a_run_without_classes(by_tokens, clips, elsewhere):
    rows = [f"{path.relative_to(clips.parent)},{int(path.stem) // 2}" for path in sorted(clips.rglob("*.wav"))]
    (clips.parent / "list.csv").write_text("\n".join(["path,speaker", *rows]))
    argv = ["pretrain", "--data.path", str(clips.parent / "list.csv"), "--data.group", "speaker", *CLIPS]
    if by_tokens:
        place = argv.index("--train.batch-size")
        argv[place : place + 2] = ["--train.tokens-per-batch", "200"]
    train_command(replace(AUDIO, experiments=(pretrain,)), argv)
    summary = json.loads(Path("runs/pretrain/summary.json").read_text())
    assert summary["metric"] == "loss" and summary["splits"].startswith("10 % of the samples were held out")
    named = json.loads(Path("runs/pretrain/samples.json").read_text())
    speakers = {split: {int(Path(name).stem) // 2 for name, _ in part} for split, part in named.items()}
    assert set(speakers) == {"train", "validation"} and not speakers["train"] & speakers["validation"]


def test_clips_are_augmented_cut_cached_and_counted(clips, monkeypatch):
    calls = []
    monkeypatch.setattr("audio.samples.read_audio", lambda path, rate: calls.append(path) or read_audio(path, rate))
    data = Unlabelled(path=clips, seconds=0.15, cache=clips.parent / "cache").read(FORM)
    assert [len(part) for part in data.parts().values()] == [18, 2, 2] and data.labels == () and not calls
    drawn = [SeededDataset(data.train, 0)[(epoch, 3)][0] for epoch in (0, 1, 0)]
    assert torch.equal(drawn[0], drawn[2]) and not torch.equal(drawn[0], drawn[1]) and len(drawn[0]) == 2400
    assert calls == [data.train.samples[3][0]]
    assert data.train.token_counts == [FORM.count_tokens(2400)] * 18
    assert torch.equal(collate([data.validation[0], data.validation[1]]).targets, torch.zeros(2, dtype=torch.long))
