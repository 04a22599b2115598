"""Repeated augmentation: a step has each sample several times, changed differently; steps depend on seed and step."""

from collections import Counter

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from points import Points, build, collate

from core import Classification, UserError
from core.data.shards import ShardLayout
from core.training import Task, TrainConfig, fit
from core.training.balanced_order import BalancedOrder
from core.training.order import make_order
from core.training.repeated_order import RepeatedOrder
from core.training.sampling import Order
from core.training.shard_order import ShardOrder
from core.training.tracking import read_metrics

LENGTHS = np.arange(24) % 7 + 1
ORDERS = {
    "shuffled": Order(3, 24, 4),
    "bucketed": Order(3, 24, 4, LENGTHS, bucket=True),
    "balanced": BalancedOrder(3, np.arange(24) % 2, 4),
    "shards": ShardOrder(3, ShardLayout((8, 8, 8), 1), 4),
}


@pytest.mark.parametrize("name", ORDERS)
def test_a_step_has_each_sample_of_the_other_order_several_times(name):
    other = ORDERS[name]
    order = RepeatedOrder(other, 3)
    keys = [key for step in range(12) for key in order.step(step)]
    assert len(set(keys)) == len(keys) == order.start(12) == 2 * order.size
    for step in range(12):
        expected = [index for _, index in other.step(step)]
        assert [index for _, index in order.step(step)] == [index for index in expected for _ in range(3)]
        assert [key for part in order.parts(step, 2) for key in part] == order.step(step)
    assert set(Counter(index for _, index in keys).values()) == {6}


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_run_changes_a_sample_each_time(tmp_path, accumulate):
    """Each is drawn anew, and the loss is the mean over all of them."""
    drawn = []

    class Noted(Points):
        def __getitem__(self, index):
            drawn.append((index, super().__getitem__(index)))
            return drawn[-1][1]

    changes = {"precision": "fp32", "device": "cpu", "lr": 0.1, "warmup": 0, "steps": 1, "log_every": 1}
    config = TrainConfig(batch_size=12, repeats=3, accumulate=accumulate, **changes)
    data, model = Noted(40, jitter=0.5), build()
    fit(Task(model, Classification(), data, Points(9), collate, in_memory=True), config, tmp_path)
    seen = drawn[-12:]
    assert set(Counter(index for index, _ in seen).values()) == {3}
    assert len({tuple(point.tolist()) for _, (point, _) in seen}) == 12

    points, targets = zip(*(sample for _, sample in seen), strict=True)
    expected = F.cross_entropy(build()(torch.stack(points)), torch.tensor(targets)).item()
    assert read_metrics(tmp_path)[0]["loss"] == pytest.approx(expected, rel=1e-6)


def test_what_cannot_be_cut_is_refused():
    with pytest.raises(
        UserError, match=r"8 must be a multiple of 6: of .* 1 times 2 processes times --train\.repeats 3\."
    ):
        make_order(Points(9), TrainConfig(batch_size=8, repeats=3), 2)
    with pytest.raises(UserError, match="repeats does not go with"):
        TrainConfig(tokens_per_batch=50, repeats=2)
