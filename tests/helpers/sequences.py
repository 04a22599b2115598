"""Sequences of different lengths, and a small model that reads them without padding."""

import os
import signal
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import Dataset

from core import IGNORE, Batch, Classification, Encoder, EncoderConfig, Tokens, pool
from core.attention.packing import Packing, Place
from core.training import Fit, Task, TrainConfig, fit


class Sequences(Dataset):
    """Noisy repetitions of one of three points, from 1 to 9 of them.

    ignore: every fifth target counts for nothing. jitter: noise that is drawn anew each time.
    """

    def __init__(self, size=50, ignore=False, jitter=0.1):
        self.jitter = jitter
        generator = torch.Generator().manual_seed(0)
        self.token_counts = torch.randint(1, 10, (size,), generator=generator).tolist()
        self.targets = torch.arange(size) % 3
        self.sequences = [
            torch.eye(3)[target] + 0.5 * torch.randn(count, 3, generator=generator)
            for count, target in zip(self.token_counts, self.targets, strict=True)
        ]
        if ignore:
            self.targets[::5] = IGNORE

    def __len__(self):
        return len(self.targets)

    def __getitem__(self, index):
        sequence = self.sequences[index]
        return sequence + self.jitter * torch.randn(sequence.shape), int(self.targets[index])


def collate(samples):
    sequences, targets = zip(*samples, strict=True)
    return Batch(([*sequences],), torch.tensor(targets))


class Reader(nn.Module):
    def __init__(self, seed=0, dropout=0.0):
        super().__init__()
        torch.manual_seed(seed)
        self.embed = nn.Linear(3, 8)
        # A bias of keys has no gradient but that of rounding, which AdamW makes large.
        self.encoder = Encoder(EncoderConfig(dim=8, depth=2, heads=2, dropout=dropout, qkv_bias=False))
        self.head = nn.Linear(8, 3)

    def forward(self, sequences):
        packing = Packing.of([Place(len(sequence)) for sequence in sequences])
        tokens = Tokens(self.embed(torch.cat(sequences))[None], packing=packing)
        return self.head(pool(self.encoder(tokens), "mean"))


class TwoReaders(nn.Module):
    """Two views of a sequence."""

    def __init__(self):
        super().__init__()
        self.one, self.other = Reader(seed=0), Reader(seed=1)

    def forward(self, sequences):
        return self.one(sequences), self.other(sequences)


def read(run, model=None, data=None, resume=False, **changes) -> Fit:
    plain = {"steps": 12, "tokens_per_batch": 60, "warmup": 2, "lr": 1e-2, "log_every": 1, "eval_every": 6}
    plain |= {"save_every": 3, "precision": "fp32", "device": "cpu", "workers": 0}
    task = Task(model or Reader(), Classification(), data or Sequences(), Sequences(17, jitter=0.0), collate)
    return fit(task, TrainConfig(**{**plain, **changes}), Path(run), resume=resume)


def read_until_killed(run: str, call: int, changes: dict) -> None:
    """Kills its own process in one of the model's calls."""
    torch.set_num_threads(1)
    model, calls = Reader(dropout=0.2), []

    def kill(*_):
        calls.append(model.training)
        if sum(calls) == call:
            os.kill(os.getpid(), signal.SIGKILL)

    model.register_forward_pre_hook(kill)
    read(run, model, resume=True, **changes)
