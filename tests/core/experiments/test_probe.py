"""Probes while a model is trained: on the training and the validation part of labelled data, with nothing disturbed."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from points import Points, build, collate
from runs import TINY, train
from torch import nn

from core import UserError
from core.data import DataSplits
from core.experiments.features import extract_features, nearest
from core.experiments.probe import ProbeConfig, probe, probing
from vision.datasets import Digits
from vision.images import collate as collate_images
from vision.train import VISION


def features(model, x):
    return model(x)


class Untouchable(Points):
    def __getitem__(self, index):
        raise AssertionError("the test part was read")


def splits(size=200, **changes):
    parts = {"train": Points(size), "validation": Points(60), "test": Untouchable(30), **changes}
    return DataSplits(**parts, labels=("a", "b", "c"))


def test_features_that_hold_the_classes_score_high_and_others_do_not():
    measure = probing(splits(), collate, features, ProbeConfig())
    found = measure(nn.Linear(3, 3))
    assert found.keys() == {"probe_linear", "probe_neighbours"}
    assert min(found.values()) > 0.8 and found == measure(nn.Linear(3, 3)) | found
    blind = nn.Linear(3, 3)
    with torch.no_grad():
        blind.weight.zero_()
    assert max(measure(blind).values()) < 0.5


def test_no_more_samples_are_read_than_asked_for():
    read = []

    class Counted(Points):
        def __getitem__(self, index):
            read.append(index)
            return super().__getitem__(index)

    data = splits(train=Counted(200), validation=Counted(60))
    measure = probing(data, collate, features, ProbeConfig(samples=40, neighbours=3))
    measure(nn.Linear(3, 3))
    first, again = read.copy(), read.clear()
    measure(nn.Linear(3, 3))
    assert read == first and again is None and len(read) == 80 and len(set(read[:40])) == 40 and max(read[:40]) > 100


def test_features_disturb_nothing():
    """Neither random numbers nor the training mode; and what is random in the data is the same in every call."""
    model = build(dropout=0.5).train()
    torch.manual_seed(1), np.random.seed(1)
    expected = torch.rand(1).item(), np.random.rand()
    torch.manual_seed(1), np.random.seed(1)
    first, targets = extract_features(model, features, Points(20), collate)
    assert expected == (torch.rand(1).item(), np.random.rand()) and model.training
    second, _ = extract_features(model, features, Points(20), collate)
    assert np.array_equal(first, second) and targets.tolist() == [i % 3 for i in range(20)]
    few, _ = extract_features(model, features, Points(20, jitter=0.0), collate, count=4)
    whole, _ = extract_features(model, features, Points(20, jitter=0.0), collate)
    assert np.allclose(few, whole[[0, 5, 10, 15]])


def test_what_cannot_be_probed():
    model = nn.Linear(3, 3)

    class OneClass(Points):
        def __init__(self, size):
            super().__init__(size)
            self.targets[:] = 1

    with pytest.raises(UserError, match="training samples are of one"):
        probe(model, features, OneClass(12), Points(12), collate)
    with pytest.raises(UserError, match="one class per sample"):
        probe(model, features, Points(12), Points(12), lambda s: collate(s)._replace(targets=torch.zeros(len(s))))


def test_nearest_are_those_by_angle():
    vectors = np.array([[1, 0], [10, 1], [0, 1], [-1, -0.1], [0.1, 5]], dtype=np.float32)
    assert nearest(vectors, [0, 2], 2).tolist() == [[1, 4], [4, 1]]
    assert nearest(vectors, [3], 9).shape == (1, 4)
    assert 3 not in nearest(np.zeros((5, 2), np.float32), [3], 4)


@pytest.mark.usefixtures("elsewhere")
def test_a_run_states_what_it_was_worth():
    """In summary.json and in the report, also if the run was resumed."""

    def make_task(experiment):
        task, config = VISION.task(experiment), ProbeConfig(samples=200)
        data = Digits().read(task.model.config.image_format)
        return replace(task, measure=probing(data, collate_images, VISION.features, config))

    probed = replace(VISION, task=make_task)
    train(*TINY, "--train.steps", 3, "--train.eval-every", 3, "--out", "run", modality=probed)
    train("digits", "--out", "run", "--resume", "--train.steps", 5, modality=probed)
    rows = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    figures = {row["step"]: row["probe_linear"] for row in rows if "probe_linear" in row}
    assert list(figures) == [0, 3, 5] and all(0 <= value <= 1 for value in figures.values())
    summary = json.loads(Path("run/summary.json").read_text())
    assert summary["start"]["probe_linear"] == figures[0] and summary["end"]["probe_linear"] == figures[5]
    report = Path("run/report.html").read_text()
    assert "<h2>Features</h2>" in report
    assert f"linear probe: {figures[0]:.1%} → {figures[5]:.1%}; nearest neighbours:" in report
