"""Data and a model small enough to train in a moment."""

import torch
from torch import nn
from torch.utils.data import Dataset

from core import IGNORE, Batch, Encoder, EncoderConfig, Tokens
from core.training import TrainConfig
from core.training.processes import make_accelerator


class Points(Dataset):
    """Three noisy clusters.

    ignore: every fifth target counts for nothing. noise: fixed; jitter: drawn anew each time.
    """

    def __init__(self, size=50, ignore=False, noise=0.5, jitter=0.1):
        self.jitter = jitter
        generator = torch.Generator().manual_seed(0)
        self.targets = torch.arange(size) % 3
        self.points = torch.eye(3)[self.targets] + noise * torch.randn(size, 3, generator=generator)
        if ignore:
            self.targets[::5] = IGNORE

    def __len__(self):
        return len(self.targets)

    def __getitem__(self, index):
        return self.points[index] + self.jitter * torch.randn(3), int(self.targets[index])


def collate(samples):
    points, targets = zip(*samples, strict=True)
    return Batch((torch.stack(points),), torch.tensor(targets))


def accelerator():
    """As a run in fp32 on the CPU has it, whatever the precision of runs before it."""
    return make_accelerator(TrainConfig(precision="fp32", device="cpu"))[0]


def build(dropout=0.0, seed=0, width=16):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, width), nn.GELU(), nn.Dropout(dropout), nn.Linear(width, 3))


class Mixer(nn.Module):
    """An encoder over the three coordinates; two layers are tied."""

    def __init__(self, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.embed = nn.Linear(3, 8, bias=False)
        self.embed.weight.no_decay = True
        self.encoder = Encoder(EncoderConfig(dim=8, depth=2, heads=2, qkv_bias=False))
        self.head = nn.Linear(8, 3, bias=False)
        self.out = nn.Linear(3, 8, bias=False)
        self.out.weight = self.embed.weight

    def forward(self, points):
        x = self.encoder(Tokens(self.embed(torch.diag_embed(points)))).x
        return self.head(x.mean(dim=1) + self.out(points))


class Rarely(nn.Module):
    """A network with weights that only points far along the first axis are for."""

    def __init__(self, declared, bound=1.5):
        super().__init__()
        torch.manual_seed(0)
        self.net, self.extra = build(), nn.Linear(3, 3)
        self.skips_weights, self.bound = declared, bound

    def forward(self, points):
        out, far = self.net(points), points[:, 0] > self.bound
        return out.index_add(0, far.nonzero()[:, 0], self.extra(points[far])) if far.any() else out


class Pair(nn.Module):
    """Two views of a point."""

    def __init__(self, seed=0):
        super().__init__()
        self.one, self.other = build(seed=seed), build(seed=seed + 1)

    def forward(self, points):
        return self.one(points), self.other(points)
