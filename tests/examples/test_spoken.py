"""Handwriting, recordings and names of digits: each thing shows one digit, and what is tested is not trained on."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from spoken_samples import publish

from core.experiments import train_command
from core.training.sampling import SeededDataset
from examples.multimodal import words
from examples.multimodal.data import formats
from examples.multimodal.spoken import Spoken
from examples.multimodal.train import MULTIMODAL, spoken

pytestmark = pytest.mark.usefixtures("without_figures")

FORMATS = formats(spoken().model)


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    return publish(tmp_path_factory.mktemp("spoken"))


def test_a_thing_is_one_digit_in_all_three(published):
    data = replace(spoken().data, path=published).read(FORMATS)
    assert [len(part) for part in data.parts().values()] == [50, 10, 150] and data.things == 10
    train = SeededDataset(data.train, 0)
    names = words.spellings().train
    for index in range(0, 50, 7):
        first, other = train[0, index], train[1, index]
        assert first.thing == int(data.train.clips.samples[index].path.name[0])
        known = [data.tokenizer.frame(ids) for ids in data.tokenizer.encode(names[first.thing])]
        assert first.text.tolist() in known
        assert not torch.equal(first.image, other.image) and not torch.equal(first.audio, other.audio)
        assert torch.equal(train[0, index].audio, first.audio)


def test_test_things_are_held_out_and_the_same_in_every_run(published):
    data, again = (Spoken(path=published, speaker="bob").read(FORMATS) for _ in range(2))
    assert len(data.test) == 70
    assert {data.test.things.clips.samples[index].path.name.split("_")[1] for index, *_ in data.test.rows} == {"bob"}
    names = words.spellings().test
    for index in (0, 30, 69):
        found = data.test[index]
        for one, other in zip(found, again.test[index], strict=True):
            assert torch.equal(torch.as_tensor(one), torch.as_tensor(other))
        assert data.test.things.images.samples[data.test.rows[index][1]][1] == found.thing
        assert data.texts[index] in names[found.thing]


def test_a_joint_space_of_recordings_by_command(published, elsewhere):
    short = ["--train.steps", "2", "--train.batch-size", "8", "--train.workers", "0", "--train.precision", "fp32"]
    small = ["--model.dim", "16", "--model.heads", "2", "--model.depth", "1"]
    train_command(MULTIMODAL, ["spoken", "--data.path", str(published), "--data.speaker", "cy", *short, *small])
    summary = json.loads(Path("runs/spoken/summary.json").read_text())
    directions = [name for name in summary["metrics"] if "_to_" in name]
    assert len(directions) == 6 and summary["test_samples"] == 70
    assert "recordings of cy are the test split" in summary["splits"]
    assert "From audio to" in Path("runs/spoken/report.html").read_text()
