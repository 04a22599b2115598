"""How work and memory grow with the length: counted, not timed, so that the answer is the same on any busy machine."""

import math
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch._library.custom_ops import OPDEFS
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from .measures import Figures, require

SLACK = 0.2  # a fitted exponent may be this much more than the claimed one: lower-order terms bend the line
TIMED_SLACK = 0.4

aten = torch.ops.aten
FUSED = {  # matrix products of n x m pairs
    aten._scaled_dot_product_flash_attention_for_cpu: (2, 0),
    aten._scaled_dot_product_flash_attention_for_cpu_backward: (5, 1),
}


class Count(TorchDispatchMode):
    """Floating-point operations, and the most bytes that were alive at once.

    Operators written in Python (torch.library.custom_op) are looked into; what a foreign compiled kernel does is not
    seen.
    """

    def __init__(self):
        super().__init__()
        self.work, self.peak = 0, 0
        self.alive: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        custom = OPDEFS.get(func._schema.name) if func.namespace not in ("aten", "prims") else None
        if custom is not None:
            with self:
                return custom._init_fn(*args, **kwargs)
        out = func(*args, **kwargs)
        if not func.is_view:
            self.work += self._operations(func, args, kwargs, out)
        self._remember(out)
        return out

    def _operations(self, func, args, kwargs, out) -> int:
        name = func._overloadpacket
        if name in flop_registry:
            return flop_registry[name](*args, **kwargs, out_val=out)
        if name is aten.matmul:
            return 2 * out.numel() * args[0].shape[-1]
        if name in FUSED:
            products, first = FUSED[name]
            q, k = args[first : first + 2]
            return 2 * products * q.numel() * k.shape[-2]
        return sum(leaf.numel() for leaf in tree_leaves(out) if isinstance(leaf, Tensor))

    def _remember(self, out) -> None:
        self.alive = {key: held for key, held in self.alive.items() if not held[0].expired()}
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                storage = leaf.untyped_storage()
                self.alive[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        self.peak = max(self.peak, sum(size for _, size in self.alive.values()))


def exponent(lengths: Sequence[int], costs: Sequence[float]) -> float:
    """The slope of the straight line through log cost against log length."""
    x, y = ([math.log(value) for value in values] for values in (lengths, costs))
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    rise = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
    return rise / sum((a - mean_x) ** 2 for a in x)


def grows_as_claimed(
    step: Callable[[int], Callable[[], None]], lengths: Sequence[int], claimed: float, timed: bool = False
) -> Figures:
    """step: of a length, one forward and backward pass ready to run."""
    work, memory, seconds = [], [], []
    for length in lengths:
        run = step(length)
        run()  # plans and tables are made once, and are not part of it
        with Count() as count:
            run()
        work.append(float(count.work))
        memory.append(float(count.peak))
        seconds.append(min(_seconds(run) for _ in range(5)) if timed else 1.0)
    figures = {"work exponent": exponent(lengths, work), "memory exponent": exponent(lengths, memory)}
    if timed:
        figures["time exponent"] = exponent(lengths, seconds)
    for what, found in figures.items():
        slack = TIMED_SLACK if what.startswith("time") else SLACK
        message = f"{what.split()[0]} grows as n^{found:.2f}, and n^{claimed:g} is claimed"
        require(found <= claimed + slack, message, **figures)
    return figures


def _seconds(run: Callable[[], None]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start
