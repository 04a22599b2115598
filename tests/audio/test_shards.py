"""Clips in shards: decoded, labelled and looked at as those of files are."""

import json

import torch

from audio import ASTConfig
from audio.datasets import Folder, Manifest, Shards
from audio.sizing import sizing
from audio.train import AUDIO, make_task
from core.experiments.command import parse_experiment
from core.experiments.shard import Arguments, shard
from core.experiments.sizes import SIZES
from core.objectives import MultiLabel, Regression

FORM = ASTConfig(max_frames=100, n_mels=32).audio_format


def test_clips_are_those_of_the_folder(clips, tmp_path):
    shard(Arguments(source=clips, shards=tmp_path / "shards", samples=4))
    packed = Shards(path=str(tmp_path / "shards"), cache=tmp_path / "cache").read(FORM)
    files = Folder(path=clips).read(FORM)
    for name in ("validation", "test"):
        for one, other in zip(packed.parts()[name], files.parts()[name], strict=True):
            assert torch.equal(one[0], other[0]) and one[1] == other[1]
    assert packed.train.shards.sizes == (4, 4, 4, 2) and len(packed.train) == len(files.train)
    assert packed.train.token_counts is None
    again = Shards(path=str(tmp_path / "shards"), cache=tmp_path / "cache").read(FORM)
    assert torch.equal(again.test[0][0], files.test[0][0])  # from the cache of decoded files


def test_the_model_follows_the_clips_of_the_first_shard(clips, tmp_path):
    shard(Arguments(source=clips, shards=tmp_path / "shards"))
    settings = []
    for words in (["shards", "--data.path", str(tmp_path / "shards")], ["folder", "--data.path", str(clips)]):
        _, experiment = parse_experiment(AUDIO, [*words, "--size", "None"])
        settings.append(dict(sizing(experiment, ()).settings(SIZES["tiny"])))
    limits = [each.pop("model.max_frames") for each in settings]
    assert settings[0] == settings[1] and limits[0] >= limits[1]


def test_clips_of_several_classes(clips, tmp_path):
    rows = [
        {"path": f"{label}/{number}.wav", "label": [label, "odd"] if number % 2 else [label]}
        for label in ("high", "low")
        for number in range(10)
    ]
    manifest = clips / "list.jsonl"
    manifest.write_text("\n".join(map(json.dumps, rows)))
    shard(Arguments(source=manifest, shards=tmp_path / "shards", multilabel=True))
    listed = Manifest(path=manifest, multilabel=True).read(FORM)
    path = str(tmp_path / "shards")
    packed = Shards(path=path).read(FORM)
    assert packed.labels == listed.labels
    assert all(torch.equal(one[1], other[1]) for one, other in zip(packed.test, listed.test, strict=True))
    _, experiment = parse_experiment(AUDIO, ["shards", "--data.path", path, "--size", "None"])
    assert isinstance(make_task(experiment).objective, MultiLabel)


def test_numbers_to_be_predicted(clips, tmp_path):
    rows = [{"path": str(path.relative_to(clips)), "label": 0.5 * int(path.stem)} for path in clips.rglob("*.wav")]
    manifest = clips / "list.jsonl"
    manifest.write_text("\n".join(map(json.dumps, rows)))
    shard(Arguments(source=manifest, shards=tmp_path / "shards", target="number"))
    path = str(tmp_path / "shards")
    packed, listed = Shards(path=path).read(FORM), Manifest(path=manifest, target="number").read(FORM)
    assert [target for _, target in packed.test] == [target for _, target in listed.test]
    _, experiment = parse_experiment(AUDIO, ["shards", "--data.path", path, "--size", "None"])
    assert isinstance(make_task(experiment).objective, Regression)
