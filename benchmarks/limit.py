"""What work takes at least: its matrix products, at the speed of large ones measured in the same run."""

import math
from collections.abc import Callable, Mapping

import torch

from core.attention.flops import flop_counter

from .row import Run
from .timing import Name, Timing, interleave

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
SHAPES = ((2048, 2048, 2048), (4096, 512, 2048))  # rows, inner, columns: a large product, and one as in an MLP
_LARGE = ", ".join(" x ".join(map(str, shape)) for shape in SHAPES)
TEXT = f"""The limit of a model or of attention is the time that its matrix products alone would take. Their speed is
that of the faster of two large products ({_LARGE}) in the same precision, in the
fastest of the rounds, which alternate with the rows. For attention, the products of the pairs of tokens that attend to
each other count. In the backward pass the logits count as well, because they are computed a second time. The other
groups say what their limit is. Whole models have no goal for their share of the limit: norms, activations and the
optimiser are not part of it, and no model comes near it. They are compared with their peers. bf16 should gain as much
for us as it does for the peer."""


def operations(work: Callable[[], object]) -> float:
    """Floating-point operations of a piece of work, which is run once."""
    with flop_counter() as counter:
        work()
    return float(counter.get_total_flops())


def interleave_with_products(
    work: Mapping[Name, Callable[[], object]], run: Run, rounds: int, precisions: tuple[str, ...] = ("fp32",)
) -> tuple[dict[Name, Timing], dict[str, float]]:
    """Timings of the work, and the floating-point operations a second of large products by precision."""
    shapes = [tuple(size // 32 for size in shape) for shape in SHAPES] if run.tiny else SHAPES
    products = {
        ("product", precision, shape): _product(*shape, DTYPES[precision], run.device)
        for precision in precisions
        for shape in shapes
    }
    found = interleave({**work, **products}, **run.times(rounds))
    speeds = {key: 2 * math.prod(key[2]) / min(found[key].rounds) for key in products}
    peaks = {precision: max(speeds["product", precision, shape] for shape in shapes) for precision in precisions}
    return {name: found[name] for name in work}, peaks


def _product(rows: int, inner: int, columns: int, dtype: torch.dtype, device: str) -> Callable[[], torch.Tensor]:
    a, b = (torch.randn(*shape, device=device).to(dtype) for shape in ((rows, inner), (inner, columns)))
    return lambda: a @ b
