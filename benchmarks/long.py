"""Attention alone on long inputs, forward and backward, one sequence of 6 heads of 64, fp32.

Ours by pattern against torch's fused attention of all pairs, up to 16,384 tokens (dearer beyond, and left out), and
against lucidrains' local-attention: windows of 128 and both their neighbours, 384 keys; `Local(256)` has 320.
x-transformers uses torch's attention, so one row serves for both. Memory does not include inputs and upstream gradient.
The goals are to be 3 times as fast as local-attention, a time per pair that grows by at most 8 %, and that two threads
are 1.9 times as fast as one.
"""

import time
from collections.abc import Callable, Iterator
from functools import partial

import torch
import torch.nn.functional as F
from local_attention import LocalAttention
from torch import Tensor

from core import attend
from core.sparse import Pattern, make_plan

from .limit import interleave_with_products, operations
from .row import Goal, Memory, Row, Run, versioned
from .timing import Timing, interleave

HEADS, DIM = 6, 64
LENGTHS = tuple(2**power for power in range(10, 17))
LONGEST_DENSE = 16_384
LOCAL, POWERS, WINDOW = "Local(256)", "PowersOfTwo() | Global(1)", "Window2d(8)"
SHARES = {LOCAL: 0.85, POWERS: 0.8, WINDOW: 0.85}
"""Of the limit, that are wanted."""


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
                goal=Goal(ratio=3.0 if peer == "local-attention" else 1.0, limit=SHARES[name]),
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
                goal=Goal(limit=SHARES[name]),
            )


def against_itself(run: Run) -> Iterator[Row]:
    """The time per pair at each length beside that at the shortest, and two threads beside one."""
    lengths = (256, 512) if run.tiny else LENGTHS[::2]
    torch.manual_seed(0)
    for name in (LOCAL, POWERS):
        work = {n: step(attention_of(name, n), *make_inputs(n)) for n in lengths}
        pairs = {n: make_plan(Pattern.parse(name), n).density * n**2 for n in lengths}
        found = interleave(work, **run.times(5))
        each = {n: Timing(tuple(t / pairs[n] * 1e9 for t in found[n].rounds)) for n in lengths}
        for n in lengths[1:]:
            yield Row(
                what=f"{name}, {n:,} tokens",
                work="forward + backward, 10^9 pairs",
                peer=f"ours, {lengths[0]:,} tokens",
                ours=each[n],
                theirs=each[lengths[0]],
                goal=Goal(ratio=1 / 1.08),
            )
        yield from _threads(name, lengths[-2], work[lengths[-2]], run)


def _threads(name: str, n: int, work: Callable[[], object], run: Run) -> Iterator[Row]:
    def with_threads(count: int) -> float:
        before = torch.get_num_threads()
        torch.set_num_threads(count)
        started = time.perf_counter()
        work()
        seconds = time.perf_counter() - started
        torch.set_num_threads(before)
        return seconds

    found = interleave({count: partial(with_threads, count) for count in (1, 2)}, **run.times(5))
    yield Row(
        what=f"{name}, {n:,} tokens, two threads",
        work="forward + backward",
        peer="ours, one thread",
        ours=found[2],
        theirs=found[1],
        goal=Goal(ratio=1.9),
    )


def rows(run: Run) -> Iterator[Row]:
    yield from against_length(run)
    yield from at_one_length(run)
    yield from against_itself(run)
