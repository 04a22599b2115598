"""How large a model, and how long its training: a function of the data and the kind of device, and of nothing else."""

import math
from dataclasses import dataclass
from typing import Literal

SizeName = Literal["tiny", "small", "base"]
Device = Literal["cpu", "cuda", "mps"]


@dataclass(frozen=True)
class Size:
    """The shape of an encoder."""

    name: SizeName
    dim: int
    depth: int
    heads: int
    fewest: int
    """Training samples from which `auto` takes it."""

    def operations(self, tokens: int) -> float:
        """Floating-point operations of training on a sample of so many tokens: see `operations`."""
        return operations(self.dim, self.depth, tokens)


SIZES = {
    size.name: size
    for size in (
        Size("tiny", dim=192, depth=6, heads=3, fewest=1),
        Size("small", dim=384, depth=12, heads=6, fewest=10_000),
        Size("base", dim=768, depth=12, heads=12, fewest=300_000),
    )
}

BUDGET = {"cpu": 3e13, "mps": 6e14, "cuda": 1e16}
"""Operations of a training of ten minutes: on two CPU cores at 50 GFLOP/s, which they reach without bf16."""
LONGEST = 6  # times the budget is as much as `auto` asks for, to see each sample FEWEST_EPOCHS times
FEWEST_EPOCHS, MOST_EPOCHS, MOST_EPOCHS_TUNED = 5, 200, 20
WORTH_IT = 20  # epochs of the fewest samples that the budget must have room for before a size is taken
FEWEST_STEPS = 200
BATCHES = {"cpu": (8, 64), "mps": (8, 128), "cuda": (8, 512)}
ACTIVATIONS = {"cpu": 4e9, "mps": 4e9, "cuda": 1.6e10}
"""Bytes that the activations of a micro-batch may take."""
EVALUATIONS = 8
FEW, MANY = 10_000, 1_000_000  # samples: up to the former regularisation is strongest, and from the latter weakest


def operations(dim: int, depth: int, tokens: int) -> float:
    """Floating-point operations of training on a sample: six for each weight and token (Kaplan et al. 2020, section
    2.1), and those of attention."""
    return 6.0 * tokens * depth * dim * (12 * dim + 2 * tokens)


def regularisation(samples: int) -> float:
    """How strong regularisation should be, from 0 to 1: the fewer training samples, the stronger."""
    return 1 - math.log(min(max(samples, FEW), MANY) / FEW) / math.log(MANY / FEW)


def exposures(samples: int, cost: float, device: Device, most_epochs: int = MOST_EPOCHS) -> int:
    """How many training samples are seen in all. cost: operations of one."""
    affordable = BUDGET[device] / cost
    least = min(FEWEST_EPOCHS * samples, LONGEST * affordable)
    return max(math.floor(min(max(affordable, least), most_epochs * samples)), 1)


def chosen_size(samples: int, costs: dict[SizeName, float], device: Device) -> Size:
    """The largest size that there are samples and operations enough for. costs: operations of a sample, by size."""
    for size in sorted(SIZES.values(), key=lambda size: -size.dim):
        if samples >= size.fewest and BUDGET[device] / costs[size.name] >= WORTH_IT * size.fewest:
            return size
    return SIZES["tiny"]


def batch_size(samples: int, device: Device, parts: int = 1) -> int:
    """A power of two that grows with the square root of the number of samples; a multiple of `parts`, into which a
    batch is cut."""
    least, most = BATCHES[device]
    size = min(max(2 ** int(math.log2(2 * math.sqrt(samples))), least), most)
    return -(-size // parts) * parts


@dataclass(frozen=True)
class Schedule:
    """The settings of a training."""

    steps: int
    batch_size: int
    accumulate: int
    lr: float
    warmup: int
    every: int
    """Steps between evaluations, and between checkpoints."""


def learning_rate(dim: int, batch: int, start: Literal["none", "all", "part"]) -> float:
    """start: whether training starts from a trained model, of which all or a part is trained."""
    at_64 = {"none": 1e-3, "all": 1.5e-4, "part": 1e-3}[start]
    rate = at_64 * min(math.sqrt(192 / dim), 1) * min(max(math.sqrt(batch / 64), 0.5), 2)
    return float(f"{rate:.2g}")


def schedule(
    samples: int,
    tokens: int,
    dim: int,
    depth: int,
    device: Device,
    *,
    start: Literal["none", "all", "part"] = "none",
    most_epochs: int = MOST_EPOCHS,
    steps: int | None = None,
    batch: int | None = None,
    accumulate: int | None = None,
    processes: int = 1,
    repeats: int = 1,
) -> Schedule:
    """The settings for so many training samples of so many tokens, and a model of such a width and depth.

    start: see `learning_rate`. most_epochs: beyond which samples like these are only learnt by heart. steps, batch,
    accumulate: what is decided already. repeats: how many times a batch has each sample.
    """
    if batch is None:
        batch = batch_size(samples, device, processes * repeats * (accumulate or 1))
    if accumulate is None:
        accumulate = micro_batches(batch, processes, 64.0 * dim * depth * tokens, ACTIVATIONS[device], repeats)
    if steps is None:
        most = most_epochs if start == "none" else min(most_epochs, MOST_EPOCHS_TUNED)
        seen = exposures(samples, operations(dim, depth, tokens), device, most)
        steps = max(10 * round(seen / batch / 10), FEWEST_STEPS)
    warmup, every = max(steps // 10, 1), max(-(-steps // EVALUATIONS), 1)
    return Schedule(steps, batch, accumulate, learning_rate(dim, batch, start), warmup, every)


def micro_batches(batch: int, processes: int, sample: float, room: float, repeats: int = 1) -> int:
    """The fewest micro-batches that a batch can be cut into, of which each has room. sample: bytes of one. repeats: how
    many times a batch has each sample, all of them in one micro-batch."""
    parts = range(1, batch // processes + 1)
    fitting = (n for n in parts if batch % (n * processes * repeats) == 0 and batch / (n * processes) * sample <= room)
    return next(fitting, max(batch // (processes * repeats), 1))
