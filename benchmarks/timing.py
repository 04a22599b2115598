"""Times things side by side: interleaved in one process, so that a drifting machine drifts for all of them."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F


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
        low, middle, high = statistics.quantiles(ratios, n=4)
        return middle, low, high


def interleave(work: Mapping[str, Callable[[], object]], rounds: int = 15, warmup: int = 2) -> dict[str, Timing]:
    """Run each piece of work in turn, `rounds` times; every other round in reverse order."""
    names = list(work)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for number in range(-warmup, rounds):
        for name in names if number % 2 else reversed(names):
            _synchronize()
            started = time.perf_counter()
            work[name]()
            _synchronize()
            if number >= 0:
                seconds[name].append(time.perf_counter() - started)
    return {name: Timing(tuple(values)) for name, values in seconds.items()}


def matmul_peak(dtype: torch.dtype = torch.float32, size: int = 2048, rounds: int = 7) -> float:
    """Measured multiply-adds * 2 a second of a large matrix product: the limit a transformer is held against."""
    a, b = torch.randn(size, size).to(dtype), torch.randn(size, size).to(dtype)
    timing = interleave({"product": lambda: a @ b}, rounds=rounds)["product"]
    return 2 * size**3 / min(timing.rounds)


def train_step(model: torch.nn.Module, inputs: torch.Tensor, targets: torch.Tensor, precision: str) -> Callable:
    """A classifier's whole step: forward, backward, AdamW."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)

    def step():
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            loss = F.cross_entropy(model(inputs), targets)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def inference(model: torch.nn.Module, inputs: torch.Tensor) -> Callable:
    return torch.inference_mode()(lambda: model(inputs))


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
