import random

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

from core import Batch
from core.training.sampling import MicroBatches, Order, SeededDataset, seed_everything, seeded, train_loader


@pytest.mark.parametrize("size, batch", [(10, 4), (7, 7), (5, 12), (64, 1)])
@pytest.mark.parametrize("by_length", [False, True])
def test_every_sample_once_an_epoch(size, batch, by_length):
    steps = 3 * size
    order = Order(1, size, batch, lengths=[i * i % 7 for i in range(size)], bucket=by_length)
    keys = [key for step in range(steps) for key in order.step(step)]
    assert len(keys) == steps * batch
    for epoch in range(steps * batch // size):
        assert sorted(index for e, index in keys if e == epoch) == list(range(size))


def test_order_differs_by_epoch_and_seed():
    first, second, other = (Order(s, 50, 50).step(step) for s, step in ((0, 0), (0, 1), (1, 0)))
    orders = [[index for _, index in keys] for keys in (first, second, other)]
    assert orders[0] != orders[1] and orders[0] != orders[2]


@pytest.mark.parametrize("accumulate, world", [(1, 2), (3, 2), (4, 1)])
def test_processes_and_micro_batches_share_out_each_step(accumulate, world):
    whole = [Order(0, 31, 24).step(step) for step in range(2, 5)]
    parts = [list(MicroBatches(Order(0, 31, 24), accumulate, 2, 5, rank, world)) for rank in range(world)]
    for number, keys in enumerate(whole):
        seen = [
            key
            for rank in range(world)
            for micro in range(accumulate)
            for key in parts[rank][number * accumulate + micro]
        ]
        assert seen == keys


class Noise(Dataset):
    def __len__(self):
        return 20

    def __getitem__(self, index):
        return torch.cat([torch.tensor([float(index)]), torch.randn(2)])


class BatchedNoise(Dataset):
    """As `Noise`, but from numbers that it is given."""

    draws = 2

    def __len__(self):
        return 20

    def make(self, indices, draws):
        return list(torch.cat([torch.tensor(indices)[:, None], torch.from_numpy(draws)], dim=1))


@pytest.mark.parametrize("dataset", [Noise(), BatchedNoise()])
@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing(workers, dataset):
    def read(workers):
        batches = MicroBatches(Order(3, 20, 8), 2, 0, 4)
        collate = lambda samples: Batch((torch.stack(samples),), torch.zeros(len(samples)))
        return torch.stack([batch.inputs[0] for batch in train_loader(dataset, collate, batches, workers, False)])

    torch.testing.assert_close(read(workers), read(0), rtol=0, atol=0)


@pytest.mark.parametrize("dataset", [Noise(), BatchedNoise()])
def test_a_sample_depends_on_seed_epoch_and_index_alone(dataset):
    keys = [(epoch, index) for epoch in range(3) for index in range(20)]
    together, other = (torch.stack(SeededDataset(dataset, seed).__getitems__(keys)) for seed in (0, 1))
    alone = torch.stack([SeededDataset(dataset, 0)[key] for key in reversed(keys)]).flip(0)
    assert torch.equal(alone, together)
    drawn = torch.cat([together, other])[:, 1:]
    assert len(drawn.unique()) == drawn.numel() == 240


def test_numbers_are_uniform():
    keys = [(epoch, index) for epoch in range(100) for index in range(20)]
    numbers = torch.stack(SeededDataset(BatchedNoise(), 0).__getitems__(keys))[:, 1:].numpy()
    assert numbers.min() >= 0 and numbers.max() < 1
    counts = np.histogram(numbers, 10, (0, 1))[0]
    assert np.abs(counts - 400).max() < 80  # 400 +- 19 by chance
    assert abs(np.corrcoef(numbers.T)[0, 1]) < 0.1


def test_every_generator_is_seeded_for_each_sample():
    class Draws(Dataset):
        def __getitem__(self, index):
            return random.random(), np.random.random(), torch.rand(()).item()

    dataset = SeededDataset(Draws(), 0)
    first = dataset[(0, 0)]
    random.random(), np.random.random(), torch.rand(())
    assert dataset[(0, 0)] == first
    assert all(a != b for a, b in zip(dataset[(0, 1)], first, strict=True))


def test_batches_by_length_hardly_pad_and_are_shuffled():
    lengths = np.random.default_rng(0).integers(1, 500, 2000)
    order = Order(0, 2000, 32, lengths.tolist(), bucket=True)
    spread, means = [], []
    for step in range(150):  # more than two epochs, whose length 32 does not divide
        batch = lengths[[index for _, index in order.step(step)]]
        spread.append(1 - batch.mean() / batch.max())
        means.append(batch.mean())
    assert np.mean(spread) < 0.1  # 0.5 in random batches
    assert abs(np.corrcoef(means[:-1], means[1:])[0, 1]) < 0.3
    again = Order(0, 2000, 32, lengths.tolist(), bucket=True)
    assert again.step(149) == order.step(149)


def test_random_numbers_go_on_after_a_seeded_part():
    def draw():
        return random.random(), np.random.rand(), torch.rand(1).item()

    seed_everything(1)
    expected = draw(), draw()
    seed_everything(2)
    inside = draw()
    seed_everything(1)
    first = draw()
    with seeded(2):
        assert draw() == inside
    assert (first, draw()) == expected
