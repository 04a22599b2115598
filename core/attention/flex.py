"""Sparse attention by torch's compiled FlexAttention, over the plan's own table of blocks.

For patterns of whole blocks. On CPUs FlexAttention has no backward pass (torch to 2.15), and compiling takes a while.
"""

from functools import cache, lru_cache

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..private_torch import constant_in_graphs
from ..sparse.layout import Grid
from ..sparse.patterns import Pattern
from ..sparse.plan import Plan, make_plan


@constant_in_graphs
def why_not(pattern: str, length: int, prefix: int, grid: Grid | None, device: str, learns: bool) -> str:
    """Why FlexAttention can't serve a call; empty if it can."""
    if device == "cpu" and learns:
        return "FlexAttention has no backward pass on CPUs"
    plan = make_plan(Pattern.parse(pattern), length, prefix, grid)
    if plan.causal or any(group.mask is not None and group.mask.shape[1] > 1 for group in plan.groups):
        return "the pattern cuts through blocks"
    return ""


def attend_flex(
    q: Float[Tensor, "b h n c"],
    k: Float[Tensor, "b h n c"],
    v: Float[Tensor, "b h n e"],
    pattern: Pattern,
    prefix: int = 0,
    grid: Grid | None = None,
    mask: Bool[Tensor, "#b n"] | None = None,
    scale: float | None = None,
) -> Float[Tensor, "b h n e"]:
    """Attention by a pattern under the mask contract; mask: which keys are real."""
    from torch.nn.attention.flex_attention import BlockMask  # two seconds to import, with torch's compiler

    plan = make_plan(pattern, q.shape[2], prefix, grid)
    slots, place, table = _tables(plan, q.device)
    counts, columns = table
    if mask is None and (slots >= 0).all():
        tables, some = (torch.zeros_like(counts), torch.zeros_like(columns), counts, columns), None
    else:
        real = (slots >= 0).expand(q.shape[0], -1)
        if mask is not None:
            real = real & mask[:, slots.clamp(min=0)]
            k, v = k.where(mask[:, None, :, None], 0), v.where(mask[:, None, :, None], 0)
        tables, some = (counts, columns), lambda b, h, i, j: real[b, j]
    if not torch.equal(slots, place):
        q, k, v = (t.index_select(2, slots.clamp(min=0)) for t in (q, k, v))
    size = len(slots), len(slots)
    blocks = BlockMask.from_kv_blocks(*tables, BLOCK_SIZE=plan.layout.block, mask_mod=some, seq_lengths=size)
    out = _compiled()(q, k, v, block_mask=blocks, scale=scale)
    return out.index_select(2, place)


@cache
def _compiled():
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=False)


@lru_cache(maxsize=64)
def _tables(plan: Plan, device: torch.device) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
    """The token in each slot (global tokens first, in blocks of their own; -1: none), the slot of each token, and how
    many key blocks each query block has, and which."""
    block, blocks, first = plan.layout.block, plan.layout.blocks, plan.first
    heads = -(-first // block)
    filler = torch.full((heads * block - first,), -1)
    body = torch.where(plan.index >= 0, plan.index + first, -1)
    slots = torch.cat([torch.arange(first), filler, body])
    kept = torch.zeros(heads + blocks, heads + blocks, dtype=torch.bool)
    kept[:heads] = kept[:, :heads] = True
    for group in plan.groups:
        kept[heads + group.rows[:, None], heads + group.columns] = True
    counts = kept.sum(dim=1, dtype=torch.int32)
    order = torch.argsort(~kept, dim=1, stable=True).to(torch.int32)
    place = torch.argsort(slots, stable=True)[-plan.length :]
    return slots.to(device), place.to(device), (counts[None, None].to(device), order[None, None].to(device))
