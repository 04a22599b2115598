"""Which samples a step sees: a pure function of (seed, step), so that resuming needs one integer.

Samples come in an endless stream: a permutation of the data set, then another. Step s of `Order` takes the samples from
s * batch size on, so every step is full, every sample is seen once an epoch, and neither the number of processes nor of
loading workers changes the order; `TokenOrder` (token_order.py) cuts the same stream by tokens. Augmentation draws from
(seed, epoch, index), and nothing else.
"""

import os
import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import shake_128
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, UInt32
from torch.utils.data import DataLoader, Dataset

from ..objectives.objective import Batch
from .interruptions import ignore_stops

Key = tuple[int, int]  # (epoch, index)
MOST_WORKERS = 8  # loading processes that are started unasked


def seed_everything(*entropy: int) -> None:
    """Seed Python, NumPy and torch (and the accelerators' generators) from a few integers."""
    words = _words([entropy], 3)[0].tolist()
    random.seed(words[0])
    np.random.seed(words[1])
    torch.manual_seed(words[2])


@contextmanager
def seeded(*entropy: int) -> Iterator[None]:
    """Inside, as after `seed_everything`. Afterwards Python's, NumPy's and the CPU's random numbers go on as before."""
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    seed_everything(*entropy)
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.set_rng_state(before[2])


def _seed_sample(*entropy: int) -> None:
    """As `seed_everything`, but only the CPU's: data are augmented there, and a sample has no time to waste."""
    words = _words([entropy], 3)[0].tolist()
    random.seed(words[0])
    np.random.seed(words[1])
    torch.default_generator.manual_seed(words[2])


def _words(entropies: Iterable[tuple[int, ...]], count: int) -> UInt32[np.ndarray, "n count"]:
    # Hashes take a sixth of the time of np.random.SeedSequence.
    hashes = [shake_128(repr(entropy).encode()).digest(4 * count) for entropy in entropies]
    return np.frombuffer(b"".join(hashes), "<u4").reshape(len(hashes), count)


class SampleStream(ABC):
    """The endless stream of `size` samples, and how it is cut into steps; steps and epochs count from 0."""

    lengths: np.ndarray | None = None
    """Of all samples, by which the speed of a run is measured; None: all the same."""

    def __init__(self, seed: int, size: int):
        self.seed, self.size = seed, size
        self._epochs: dict[int, np.ndarray] = {}

    @abstractmethod
    def start(self, step: int) -> int:
        """The position in the stream of a step's first sample: the number of samples before it."""

    @abstractmethod
    def parts(self, step: int, count: int) -> list[list[Key]]:
        """The samples of a step, divided among `count` micro-batches."""

    def step(self, step: int) -> list[Key]:
        """The (epoch, index) of each sample of one step."""
        position, end = self.start(step), self.start(step + 1)
        keys = []
        while position < end:
            epoch, offset = divmod(position, self.size)
            indices = self.epoch(epoch)[offset : offset + end - position].tolist()
            keys += [(epoch, index) for index in indices]
            position += len(indices)
        return keys

    def epoch(self, epoch: int) -> np.ndarray:
        """One epoch's permutation of the samples."""
        if epoch not in self._epochs:
            if len(self._epochs) > 1:  # a step spans two epochs at most, unless the data set is tiny
                self._epochs.clear()
            random_state = np.random.default_rng([self.seed, epoch])
            self._epochs[epoch] = self._arranged(random_state.permutation(self.size), epoch, random_state)
        return self._epochs[epoch]

    def _arranged(self, order: np.ndarray, epoch: int, random_state: np.random.Generator) -> np.ndarray:
        return order


class Order(SampleStream):
    """Steps of `batch_size` samples.

    lengths: of all samples. bucket: puts samples of like length into the same batch; which batches there are and when
        they come stays random.
    """

    POOL = 50  # batches whose samples are sorted by length together: enough for even batches, few enough to mix

    def __init__(
        self,
        seed: int,
        size: int,
        batch_size: int,
        lengths: Sequence[int] | np.ndarray | None = None,
        bucket: bool = False,
    ):
        super().__init__(seed, size)
        self.batch_size, self.bucket = batch_size, bucket
        self.lengths = None if lengths is None else np.asarray(lengths)

    def start(self, step: int) -> int:
        return step * self.batch_size

    def parts(self, step: int, count: int) -> list[list[Key]]:
        keys, size = self.step(step), self.batch_size // count
        return [keys[first : first + size] for first in range(0, count * size, size)]

    def _arranged(self, order: np.ndarray, epoch: int, random_state: np.random.Generator) -> np.ndarray:
        if not self.bucket:
            return order
        assert self.lengths is not None
        # The epoch's first samples fill up a batch that the last epoch began; whole batches come next.
        first = min(-epoch * self.size % self.batch_size, self.size)
        whole = (self.size - first) // self.batch_size
        body = order[first : first + whole * self.batch_size]
        pools = np.split(body, range(self.POOL * self.batch_size, len(body), self.POOL * self.batch_size))
        by_length = np.concatenate([pool[np.argsort(self.lengths[pool], kind="stable")] for pool in pools])
        batches = random_state.permutation(by_length.reshape(whole, self.batch_size))
        return np.concatenate([order[:first], batches.ravel(), order[first + len(body) :]])


@dataclass(frozen=True)
class MicroBatches:
    """This process's micro-batches, step after step."""

    order: SampleStream
    accumulate: int
    first_step: int
    last_step: int
    rank: int = 0
    world: int = 1

    def __len__(self) -> int:
        return (self.last_step - self.first_step) * self.accumulate

    def __iter__(self) -> Iterator[list[Key]]:
        first = self.rank * self.accumulate  # one behind the other, so that a process reads a contiguous part of a step
        for step in range(self.first_step, self.last_step):
            yield from self.order.parts(step, self.accumulate * self.world)[first : first + self.accumulate]


@runtime_checkable
class BatchedDataset(Protocol):
    """A data set that makes a whole batch at once, from uniform random numbers that it is given.

    A sample must depend on its own numbers alone, bit for bit, and not on the rest of the batch.
    """

    draws: int
    """How many numbers, from 0 to 1, each sample takes."""

    def make(self, indices: list[int], draws: Float[np.ndarray, "n draws"]) -> list: ...


class SeededDataset(Dataset):
    """A data set read by (epoch, index), its random draws a function of them and the seed.

    One that is no `BatchedDataset` draws from the global generators of Python, NumPy and torch.
    """

    def __init__(self, dataset: Any, seed: int):
        self.dataset, self.seed = dataset, seed

    def __getitem__(self, key: Key) -> Any:
        return self.__getitems__([key])[0]

    def __getitems__(self, keys: list[Key]) -> list:  # what DataLoader asks for
        if isinstance(self.dataset, BatchedDataset):
            words = _words(((self.seed, *key) for key in keys), self.dataset.draws)
            return self.dataset.make([index for _, index in keys], words / 2**32)
        samples = []
        for key in keys:
            _seed_sample(self.seed, *key)
            samples.append(self.dataset[key[1]])
        return samples


def train_loader(
    dataset: Any, collate: Callable[[list], Batch], batches: MicroBatches, workers: int, pin_memory: bool
) -> DataLoader:
    return DataLoader(
        SeededDataset(dataset, batches.order.seed),
        batch_sampler=batches,
        collate_fn=collate,
        num_workers=workers,
        pin_memory=pin_memory,
        worker_init_fn=start_worker,
    )


def cores() -> int:
    """How many cores this process may use, which a job on a shared machine has fewer of than the machine."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def start_worker(worker: int) -> None:
    """Called in each loading process."""
    torch.set_num_threads(1)
    ignore_stops()
