"""Times things side by side: interleaved in one process, so that a drifting machine drifts for all of them."""

import random
import statistics
import time
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch

Name = TypeVar("Name", bound=Hashable)


@dataclass(frozen=True)
class Timing:
    """Seconds of each round."""

    rounds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.rounds)

    def ratio(self, other: "Timing") -> tuple[float, float, float]:
        """How many times faster than `other`, round by round: median, and the first and third quartile."""
        ratios = [theirs / ours for ours, theirs in zip(self.rounds, other.rounds, strict=True)]
        middle, low, high = np.quantile(ratios, (0.5, 0.25, 0.75)).tolist()
        return middle, low, high


def interleave(work: Mapping[Name, Callable[[], object]], rounds: int = 15, warmup: int = 2) -> dict[Name, Timing]:
    """Run each piece of work once a round, in an order drawn anew: what stands before it weighs on no one alone.

    Work that returns a float has timed itself: those are its seconds.
    """
    names, order = list(work), random.Random(0)
    seconds: dict[Name, list[float]] = {name: [] for name in names}
    for number in range(-warmup, rounds):
        for name in order.sample(names, len(names)):
            _synchronize()
            started = time.perf_counter()
            found = work[name]()
            _synchronize()
            if number >= 0:
                seconds[name].append(found if isinstance(found, float) else time.perf_counter() - started)
    return {name: Timing(tuple(values)) for name, values in seconds.items()}


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
