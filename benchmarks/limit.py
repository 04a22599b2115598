"""What work takes at least: its matrix products, at the speed of large ones measured in the same run."""

import math
from collections.abc import Callable, Mapping

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from core.attention.recording import record_attention
from core.training.throughput import _attention_operations

from .row import Run
from .timing import Name, Timing, interleave

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
SHAPES = ((2048, 2048, 2048), (4096, 512, 2048))  # rows, inner, columns: a large product, and one as in an MLP
_LARGE = ", ".join(" x ".join(map(str, shape)) for shape in SHAPES)
TEXT = f"""The limit of a model or an attention is its matrix products alone, attention counted by the pairs kept, at
the speed of the faster of two large products ({_LARGE}) in that precision,
its fastest round of those interleaved with the rows. Other groups say what theirs is."""


class Products(TorchDispatchMode):
    """Counts the operations of matrix products and convolutions, but for attention's. Blind in inference mode."""

    def __init__(self):
        super().__init__()
        self.operations = 0.0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        count = flop_registry.get(func._overloadpacket)
        if count is not None and "attention" not in func._overloadpacket.__name__:
            self.operations += count(*args, **(kwargs or {}), out_val=out)
        return out


def operations(work: Callable[[], object], passes: int) -> float:
    """Floating-point operations of the matrix products in a piece of our work, run once.

    passes: 1 for inference, 3 with a backward pass, as attention's are counted (Chowdhery et al. 2022, appendix B).
    """
    with Products() as products, record_attention() as calls:
        work()
    return products.operations + passes * sum(map(_attention_operations, calls))


def interleave_with_products(
    work: Mapping[Name, Callable[[], object]], run: Run, rounds: int, precisions: tuple[str, ...] = ("fp32",)
) -> tuple[dict[Name, Timing], dict[str, float]]:
    """Timings of the work, and the floating-point operations a second of large products by precision."""
    shapes = [tuple(size // 32 for size in shape) for shape in SHAPES] if run.tiny else SHAPES
    products = {
        ("product", precision, shape): _product(*shape, DTYPES[precision])
        for precision in precisions
        for shape in shapes
    }
    found = interleave({**work, **products}, **run.times(rounds))
    speeds = {key: 2 * math.prod(key[2]) / min(found[key].rounds) for key in products}
    peaks = {precision: max(speeds["product", precision, shape] for shape in shapes) for precision in precisions}
    return {name: found[name] for name in work}, peaks


def _product(rows: int, inner: int, columns: int, dtype: torch.dtype) -> Callable[[], torch.Tensor]:
    a, b = torch.randn(rows, inner).to(dtype), torch.randn(inner, columns).to(dtype)
    return lambda: a @ b
