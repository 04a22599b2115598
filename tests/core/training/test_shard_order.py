"""The order of samples in shards: every sample once an epoch, few shards at a time, the same for all processes."""

import numpy as np
import pytest

from core.data.shards import ShardLayout
from core.training.sampling import MicroBatches, Order
from core.training.shard_order import ShardOrder

LAYOUT = ShardLayout((7, *(10,) * 22, 3), window=2)


@pytest.mark.parametrize("batch", [1, 8, 12, 60, 300])
def test_every_sample_once_an_epoch(batch):
    order = ShardOrder(1, LAYOUT, batch)
    steps = 3 * order.size // batch + 1
    keys = [key for step in range(steps) for key in order.step(step)]
    assert len(keys) == steps * batch
    for epoch in range(steps * batch // order.size):
        assert sorted(index for e, index in keys if e == epoch) == list(range(order.size))


def test_a_step_is_the_same_whenever_it_is_asked_for():
    steps = [ShardOrder(1, LAYOUT, 24).step(step) for step in range(40)]
    order = ShardOrder(1, LAYOUT, 24)
    assert [order.step(step) for step in reversed(range(40))] == steps[::-1]
    assert steps != [ShardOrder(2, LAYOUT, 24).step(step) for step in range(40)]


def test_a_window_that_holds_all_shards_gives_the_order_of_files():
    order = ShardOrder(3, ShardLayout((5, 6, 7), window=3), 4)
    assert [order.step(step) for step in range(20)] == [Order(3, 18, 4).step(step) for step in range(20)]


@pytest.mark.parametrize("accumulate", [1, 3])
def test_processes_share_out_the_steps_of_one_and_read_shards_of_their_own(accumulate):
    layout = ShardLayout((20,) * 64, window=2)
    whole = [ShardOrder(0, layout, 48).step(step) for step in range(26)]  # one epoch
    for world in (1, 2, 4):
        parts = [[*MicroBatches(ShardOrder(0, layout, 48), accumulate, 0, 26, rank, world)] for rank in range(world)]
        steps = [
            [key for part in parts for keys in part[step * accumulate : (step + 1) * accumulate] for key in keys]
            for step in range(26)
        ]
        assert steps == whole
        shards = [{index // 20 for keys in part for _, index in keys} for part in parts]
        assert all(len(each) <= 64 / world + 3 * layout.window for each in shards)


def test_samples_of_few_shards_are_mixed_at_a_time():
    layout = ShardLayout((50,) * 100, window=3)
    order = ShardOrder(0, layout, 40)
    steps = [np.array([index // 50 for _, index in order.step(step)]) for step in range(125)]
    assert order.lanes == 8 and all(len(np.unique(shards)) > 8 for shards in steps)  # mixed
    for first in range(0, 125, 5):
        assert len(np.unique(np.concatenate(steps[first : first + 5]))) <= 8 * 2 * 3  # of at most two windows a lane
    firsts = [order.step(step)[0][1] // 50 for step in (0, 125)]
    assert firsts[0] != firsts[1]  # shards come in another order in the next epoch
