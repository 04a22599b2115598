"""How operations and memory grow with the length: counted, not timed, so that a busy machine changes nothing."""

import math
import sys
import time
import weakref
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, UntypedStorage
from torch.utils.flop_counter import FlopCounterMode

from ..private_torch import (
    TorchDispatchMode,
    custom_op_function,
    tree_leaves,
)
from .measures import Figures, require

SLACK = 0.2  # a fitted exponent may exceed the claimed one by this: lower-order terms bend the line
TIMED_SLACK = 0.4


class _Count(TorchDispatchMode):
    """Floating-point operations, and the most bytes that were allocated at once.

    An operator that `flops` counts nothing for costs one operation for each number of its result.
    """

    def __init__(self, flops: FlopCounterMode):
        super().__init__()
        self.flops, self.elementwise = flops, 0
        self.allocated, self.peak = 0, 0
        self.storages = weakref.WeakSet[UntypedStorage]()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if (function := custom_op_function(func)) is not None:
            with self:
                return function(*args, **kwargs)
        before = self.flops.get_total_flops()
        out = func(*args, **kwargs)
        results = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        if not func.is_view and self.flops.get_total_flops() == before:
            self.elementwise += sum(result.numel() for result in results)
        for result in results:
            self._remember(result.untyped_storage())
        self.peak = max(self.peak, self.allocated)
        return out

    def _remember(self, storage: UntypedStorage) -> None:
        if storage not in self.storages:
            self.storages.add(storage)
            self.allocated += storage.nbytes()
            weakref.finalize(storage, self._forget, storage.nbytes())

    def _forget(self, size: int) -> None:
        self.allocated -= size


def cost(run: Callable[[], Any]) -> tuple[int, int]:
    """Floating-point operations of `run()`, and the most bytes that it had allocated at once.

    Operators written in Python (torch.library.custom_op) are looked into; what another library's compiled kernel does
    is not seen.
    """
    with _flop_counter() as flops, _Count(flops) as count:
        run()
    return flops.get_total_flops() + count.elementwise, count.peak


def _flop_counter() -> FlopCounterMode:
    """That of core.attention where its operators may run, else torch's own."""
    if "core.attention" not in sys.modules:
        return FlopCounterMode(display=False)
    from ..attention.flops import flop_counter

    return flop_counter()


def exponent(lengths: Sequence[int], costs: Sequence[float]) -> float:
    """The slope of the straight line fitted to log cost against log length."""
    x, y = ([math.log(value) for value in values] for values in (lengths, costs))
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    rise = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
    return rise / sum((a - mean_x) ** 2 for a in x)


def grows_as_claimed(
    step: Callable[[int], Callable[[], None]], lengths: Sequence[int], claimed: float, timed: bool = False
) -> Figures:
    """step: makes a forward and backward pass at a length, ready to run."""
    work, memory, seconds = [], [], []
    for length in lengths:
        run = step(length)
        run()  # plans and tables, which are made once, are not counted
        operations, peak = cost(run)
        work.append(float(operations))
        memory.append(float(peak))
        seconds.append(min(_seconds(run) for _ in range(5)) if timed else 1.0)
    figures = {"work exponent": exponent(lengths, work), "memory exponent": exponent(lengths, memory)}
    if timed:
        figures["time exponent"] = exponent(lengths, seconds)
    for what, fitted in figures.items():
        slack = TIMED_SLACK if what.startswith("time") else SLACK
        message = f"{what.split()[0]} grows as n^{fitted:.2f}, and n^{claimed:g} is claimed"
        require(fitted <= claimed + slack, message, **figures)
    return figures


def _seconds(run: Callable[[], None]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start
