import pytest
import torch
from torch.utils.data import Dataset

from core import Batch
from core.training.sampling import MicroBatches, step_keys, train_loader


@pytest.mark.parametrize("size, batch", [(10, 4), (7, 7), (5, 12), (64, 1)])
def test_every_sample_once_an_epoch(size, batch):
    steps = 3 * size
    keys = [key for step in range(steps) for key in step_keys(1, step, batch, size)]
    assert len(keys) == steps * batch
    for epoch in range(steps * batch // size):
        assert sorted(index for e, index in keys if e == epoch) == list(range(size))


def test_order_differs_by_epoch_and_seed():
    first, second, other = (step_keys(s, step, 50, 50) for s, step in ((0, 0), (0, 1), (1, 0)))
    orders = [[index for _, index in keys] for keys in (first, second, other)]
    assert orders[0] != orders[1] and orders[0] != orders[2]


@pytest.mark.parametrize("accumulate, world", [(1, 2), (3, 2), (4, 1)])
def test_processes_and_micro_batches_share_out_each_step(accumulate, world):
    whole = [step_keys(0, step, 24, 31) for step in range(2, 5)]
    parts = [list(MicroBatches(0, 31, 24, accumulate, 2, 5, rank, world)) for rank in range(world)]
    for number, keys in enumerate(whole):
        seen = [
            key
            for micro in range(accumulate)
            for rank in range(world)
            for key in parts[rank][number * accumulate + micro]
        ]
        assert seen == keys


class Noise(Dataset):
    def __len__(self):
        return 20

    def __getitem__(self, index):
        return torch.cat([torch.tensor([float(index)]), torch.randn(2)])


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing(workers):
    def read(workers):
        batches = MicroBatches(3, 20, 8, 2, 0, 4)
        collate = lambda samples: Batch((torch.stack(samples),), torch.zeros(len(samples)))
        return torch.stack([batch.inputs[0] for batch in train_loader(Noise(), collate, batches, workers, False)])

    torch.testing.assert_close(read(workers), read(0), rtol=0, atol=0)
