"""Which samples a step sees: a pure function of (seed, step), so that resuming needs one integer.

Samples come in an endless stream: a permutation of the data set, then another. Step s takes the samples from s * batch
size on, so every step is full, every sample is seen once an epoch, and neither the number of processes nor of loading
workers changes the order. Augmentation draws from (seed, epoch, index), and nothing else.
"""

import random
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from ..objectives import Batch

Key = tuple[int, int]  # (epoch, index)


def seed_everything(*entropy: int) -> None:
    """Seed Python, NumPy and torch (and the accelerators' generators) from a few integers."""
    words = _words(entropy)
    random.seed(words[0])
    np.random.seed(words[1])
    torch.manual_seed(words[2])


def _seed_sample(*entropy: int) -> None:
    """As `seed_everything`, but only the CPU's: data are augmented there, and a sample has no time to waste."""
    words = _words(entropy)
    random.seed(words[0])
    np.random.seed(words[1])
    torch.default_generator.manual_seed(words[2])


def _words(entropy: tuple[int, ...]) -> list[int]:
    return np.random.SeedSequence(entropy).generate_state(3).tolist()


def step_keys(seed: int, step: int, batch_size: int, size: int) -> list[Key]:
    """The (epoch, index) of each sample of one step; steps count from 0."""
    keys = []
    for position in range(step * batch_size, (step + 1) * batch_size):
        epoch, offset = divmod(position, size)
        keys.append((epoch, int(_permutation(seed, epoch, size)[offset])))
    return keys


_cache: dict[tuple[int, int, int], np.ndarray] = {}


def _permutation(seed: int, epoch: int, size: int) -> np.ndarray:
    key = (seed, epoch, size)
    if key not in _cache:
        if len(_cache) > 2:  # a step spans two epochs at most, unless the data set is tiny
            _cache.clear()
        _cache[key] = np.random.default_rng([seed, epoch]).permutation(size)
    return _cache[key]


@dataclass(frozen=True)
class MicroBatches:
    """This process's micro-batches, step after step."""

    seed: int
    size: int
    batch_size: int
    accumulate: int
    first_step: int
    last_step: int
    rank: int = 0
    world: int = 1

    def __len__(self) -> int:
        return (self.last_step - self.first_step) * self.accumulate

    def __iter__(self) -> Iterator[list[Key]]:
        share = self.batch_size // (self.accumulate * self.world)
        for step in range(self.first_step, self.last_step):
            keys = step_keys(self.seed, step, self.batch_size, self.size)
            for micro in range(self.accumulate):
                start = (micro * self.world + self.rank) * share
                yield keys[start : start + share]


class SeededDataset(Dataset):
    """A data set read by (epoch, index), its random draws seeded by them."""

    def __init__(self, dataset: Dataset, seed: int):
        self.dataset, self.seed = dataset, seed

    def __getitem__(self, key: Key) -> Any:
        _seed_sample(self.seed, *key)
        return self.dataset[key[1]]


def train_loader(
    dataset: Dataset, collate: Callable[[list], Batch], batches: MicroBatches, workers: int, pin_memory: bool
) -> DataLoader:
    return DataLoader(
        SeededDataset(dataset, batches.seed),
        batch_sampler=batches,
        collate_fn=collate,
        num_workers=workers,
        pin_memory=pin_memory,
        worker_init_fn=_start_worker,
    )


def _start_worker(worker: int) -> None:
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the main process's to handle
