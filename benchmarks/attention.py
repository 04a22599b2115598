"""Attention of all pairs, forward and backward, 6 heads of 64: ours against torch's own, and against itself.

With a padding mask the samples have a half to all of the tokens; the bias is learned, one for each head. In bf16, where
the CPU has its arithmetic, without any of that, and the forward pass alone, too. There the goal is 2.2 times torch's
speed. Where that would be more than 90 % of the limit, which no kernel reaches, it is 80 % of the limit.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from core import attend

from .limit import interleave_with_products, operations
from .row import Goal, Row, Run, versioned

HEADS, DIM = 6, 64
PLAIN, MASK, BIAS, DROPOUT = "plain", "a padding mask", "a learned bias", "dropout of 0.1"


@dataclass(frozen=True)
class Case:
    """A size, and the share of the limit that is wanted where nothing is masked, added or dropped."""

    batch: int
    tokens: int
    share: float

    @property
    def text(self) -> str:
        return f"Attention, {self.batch} x {self.tokens:,} tokens"


CASES = (Case(8, 197, 0.75), Case(8, 512, 0.8), Case(1, 1024, 0.85), Case(1, 2048, 0.85))
COSTS = {MASK: 1.05, BIAS: 1.15}
"""At most so many times the time without it."""


BF16, REACHABLE, SHARE = 2.2, 0.9, 0.8
"""What is wanted of bf16: so many times torch's speed, or, where that would be more of the limit than can be reached,
this share of the limit."""


def works(case: Case) -> dict[tuple[str, str], Callable[[], object]]:
    """By who computes it and with what."""
    b, n = case.batch, case.tokens
    q, k, v = (torch.randn(b, HEADS, n, DIM).requires_grad_() for _ in range(3))
    grad, bias = torch.randn(b, HEADS, n, DIM), torch.randn(1, HEADS, n, n).requires_grad_()
    mask = torch.arange(n) < torch.linspace(n / 2 if b > 1 else n, n, b)[:, None]

    def step(attention: Callable[..., Tensor], *learned: Tensor, **options: object) -> Callable[[], object]:
        leaves = (q, k, v, *learned)
        return lambda: torch.autograd.grad(attention(q, k, v, **options), leaves, grad)

    torchs = F.scaled_dot_product_attention
    return {
        ("ours", PLAIN): step(attend),
        ("torch", PLAIN): step(torchs),
        ("ours", MASK): step(attend, mask=mask),
        ("torch", MASK): step(torchs, attn_mask=mask[:, None, None]),
        ("ours", BIAS): step(attend, bias, bias=bias),
        ("torch", BIAS): step(torchs, bias, attn_mask=bias),
        ("ours", DROPOUT): step(attend, dropout=0.1),
        ("torch", DROPOUT): step(torchs, dropout_p=0.1),
    }


def rows(run: Run) -> Iterator[Row]:
    for case in CASES[:1] if run.tiny else CASES:
        torch.manual_seed(0)
        work = works(case)
        found, peaks = interleave_with_products(work, run, 9)
        limit = operations(work["ours", PLAIN]) / peaks["fp32"]
        for kind in (PLAIN, MASK, BIAS, DROPOUT):
            yield Row(
                what=f"{case.text}{'' if kind == PLAIN else f', {kind}'}",
                work="forward + backward",
                peer=versioned("torch"),
                ours=found["ours", kind],
                theirs=found["torch", kind],
                limit=limit if kind == PLAIN else None,
                goal=Goal(limit=case.share if kind == PLAIN else None),
            )
        for kind, most in COSTS.items():
            yield Row(
                what=f"{case.text}, {kind}",
                work="forward + backward",
                peer="ours, without it",
                ours=found["ours", kind],
                theirs=found["ours", PLAIN],
                goal=Goal(ratio=1 / most),
            )
        if run.bf16:
            yield from bf16_rows(case, run)


def bf16_rows(case: Case, run: Run) -> Iterator[Row]:
    b, n = case.batch, case.tokens
    q, k, v = (torch.randn(b, HEADS, n, DIM, dtype=torch.bfloat16).requires_grad_() for _ in range(3))
    grad = torch.randn(b, HEADS, n, DIM, dtype=torch.bfloat16)

    def forward(attention: Callable[..., Tensor]) -> Callable[[], object]:
        return torch.no_grad()(lambda: attention(q, k, v))

    def both(attention: Callable[..., Tensor]) -> Callable[[], object]:
        return lambda: torch.autograd.grad(attention(q, k, v), (q, k, v), grad)

    makers = {"forward, bf16": forward, "forward + backward, bf16": both}
    peers = {"ours": attend, "torch": F.scaled_dot_product_attention}
    work = {(who, what): make(attention) for what, make in makers.items() for who, attention in peers.items()}
    found, peaks = interleave_with_products(work, run, 9, ("bf16",))
    for what in makers:
        theirs, limit = found["torch", what], operations(work["ours", what]) / peaks["bf16"]
        reachable = BF16 * limit / theirs.median <= REACHABLE
        yield Row(
            what=case.text,
            work=what,
            peer=versioned("torch"),
            ours=found["ours", what],
            theirs=theirs,
            limit=limit,
            goal=Goal(ratio=BF16) if reachable else Goal(limit=SHARE),
        )
