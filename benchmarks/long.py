"""Attention alone on long inputs, forward and backward, one sequence of 6 heads of 64, fp32.

Ours by pattern against torch's fused attention of all pairs, up to 16,384 tokens (dearer beyond, and left out), and
against lucidrains' local-attention: windows of 128 and both their neighbours, 384 keys; `Local(256)` has 320.
x-transformers attends through torch's, so it stands for both. Memory is that above inputs and upstream gradient.
"""

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from local_attention import LocalAttention
from torch import Tensor

from core import attend
from core.sparse import Pattern

from .limit import interleave_with_products, operations
from .row import Memory, Row, Run, versioned

HEADS, DIM = 6, 64
LENGTHS = tuple(2**power for power in range(10, 17))
LONGEST_DENSE = 16_384
LOCAL, POWERS, WINDOW = "Local(256)", "PowersOfTwo() | Global(1)", "Window2d(8)"


def make_inputs(n: int, batch: int = 1, heads: int = HEADS) -> list[Tensor]:
    """Queries, keys, values, upstream gradient."""
    return [torch.randn(batch, heads, n, DIM) for _ in range(4)]


def step(attention: Callable, q: Tensor, k: Tensor, v: Tensor, grad: Tensor, backward: bool = True) -> Callable:
    leaves = [t.detach().requires_grad_(backward) for t in (q, k, v)]

    def run() -> None:
        with torch.set_grad_enabled(backward):
            out = attention(*leaves)
        if backward:
            torch.autograd.grad(out, leaves, grad)

    return run


def attention_of(name: str, n: int) -> Callable:
    """Of a pattern, or a peer's."""
    if name == "dense":
        return F.scaled_dot_product_attention
    if name == "local-attention":
        return LocalAttention(128, look_backward=1, look_forward=1, use_rotary_pos_emb=False)
    pattern = Pattern.parse(name)
    side = round(n**0.5)
    grid = (n // side, side) if name == WINDOW else None
    return lambda q, k, v: attend(q, k, v, pattern=pattern, grid=grid)


def loaded_step(name: str, n: int) -> Callable:
    """For memory: libraries are loaded before."""
    step(attention_of(name, 256), *make_inputs(256))()
    return step(attention_of(name, n), *make_inputs(n))


def against_length(run: Run) -> Iterator[Row]:
    for n in (256,) if run.tiny else LENGTHS:
        torch.manual_seed(0)
        data, peers = make_inputs(n), ["local-attention", *(["dense"] if n <= LONGEST_DENSE else [])]
        work = {name: step(attention_of(name, n), *data) for name in (LOCAL, POWERS, *peers)}
        found, peaks = interleave_with_products(work, run, 5)
        measured = work if n in LENGTHS[::2] else ()  # processes take their time
        memory = {name: run.memory((loaded_step, name, n)) for name in measured}
        called = {"local-attention": versioned("local-attention"), "dense": f"dense, {versioned('torch')}"}
        for name, peer in ((LOCAL, "local-attention"), (LOCAL, "dense"), (POWERS, "dense")):
            if (name, peer) == (LOCAL, "dense") and peer not in found:
                continue
            yield Row(
                what=f"{name}, {n:,} tokens",
                work="forward + backward",
                peer=called[peer],
                ours=found[name],
                theirs=found.get(peer),
                limit=operations(work[name]) / peaks["fp32"],
                memory=_both(memory.get(name), memory.get(peer)),
                length=n,
            )


def _both(ours: Memory | None, theirs: Memory | None) -> Memory | None:
    return ours and (ours[0], theirs and theirs[0])


def at_one_length(run: Run) -> Iterator[Row]:
    """Forward alone, and neighbours on a grid."""
    n = 256 if run.tiny else LONGEST_DENSE
    torch.manual_seed(0)
    data = make_inputs(n)
    for backward in (False, True):
        names = (WINDOW,) if backward else (LOCAL, POWERS, WINDOW)
        work = {name: step(attention_of(name, n), *data, backward=backward) for name in (*names, "dense")}
        found, peaks = interleave_with_products(work, run, 5)
        for name in names:
            yield Row(
                what=f"{name}, {n:,} tokens",
                work="forward + backward" if backward else "forward",
                peer=f"dense, {versioned('torch')}",
                ours=found[name],
                theirs=found["dense"],
                limit=operations(work[name]) / peaks["fp32"],
            )


def rows(run: Run) -> Iterator[Row]:
    yield from against_length(run)
    yield from at_one_length(run)
