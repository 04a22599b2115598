"""Plans as the C++ kernel takes them: tables of blocks, and where the sequences of a batch or of a row begin."""

import ctypes
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from .plan import PLANS, PackedPlan, Plan


class _Plan(ctypes.Structure):
    """As in cpp/call.h."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("num_global", "block", "causal")),
        *((name, ctypes.c_int64) for name in ("queries", "query_blocks", "keys", "blocks")),
        *((name, ctypes.c_void_p) for name in ("index", "start", "columns", "mask_at", "mask_step", "masks")),
    ]


@dataclass(frozen=True, eq=False)
class Rows:
    """The sequences of a call, as the kernel takes them.

    plans: an array of `_Plan`. sequences: as in cpp/call.h. kept: what the array of plans points to. index: the
    token of each key slot of a row, global tokens before the others of their sequence; None if keys stay in their own
    order. place: the slot of each token. filled: which slots are not empty; None for all.
    """

    plans: ctypes.Array
    sequences: Tensor
    batch: int
    tokens_of_row: int
    kept: list[dict[str, Tensor]]
    index: Tensor | None = None
    place: Tensor | None = None
    filled: Tensor | None = None

    def keys(self, t: Tensor) -> Tensor:
        """Keys or values slot by slot, from those token by token."""
        return t if self.index is None else _select(t, self.index)

    def empty_sums(self, parts: int, keys: Tensor, dtype: torch.dtype) -> Tensor:
        """Memory "parts b h m c" for gradients of keys, slot by slot."""
        if self.place is not None:
            return keys.new_empty(parts, *keys.shape, dtype=dtype)
        b, h, m, c = keys.shape
        return keys.new_empty(parts, b, m, h, c, dtype=dtype).transpose(2, 3)

    def tokens(self, t: Tensor) -> Tensor:
        """The inverse of `keys`, in memory the heads of a token side by side."""
        if self.place is None:
            return t
        b, h, slots, c = t.shape
        each = torch.arange(b)[:, None, None] * (h * slots) + torch.arange(h) * slots + self.place[:, None]  # "b m h"
        return t.reshape(-1, c).index_select(0, each.flatten()).view(b, -1, h, c).transpose(1, 2)

    def key_mask(self, mask: Tensor | None) -> Tensor | None:
        """The slots that may be attended to, neither padding nor empty; None if all may."""
        if mask is None:
            return None if self.filled is None else self.filled.expand(self.batch, -1).contiguous()
        mask = mask.expand(-1, self.tokens_of_row)
        mask = mask if self.index is None else mask[:, self.index]
        mask = mask if self.filled is None else mask & self.filled
        return mask.expand(self.batch, -1).contiguous()


@lru_cache(maxsize=64)
def rows_of(plan: Plan | PackedPlan, batch: int) -> Rows:
    plans, which = _sequences(plan, batch)
    tables = [_tables(each) for each in plans]
    array = (_Plan * len(plans))(
        *(
            _Plan(
                num_global=each.num_global,
                block=each.layout.block,
                causal=each.causal,
                queries=each.length - each.num_global,
                query_blocks=each.query_blocks,
                keys=each.key_length - each.num_global,
                blocks=each.layout.blocks,
                **{name: t.data_ptr() for name, t in table.items() if name != "slots"},
            )
            for each, table in zip(plans, tables, strict=True)
        )
    )
    slots = [table["slots"] for table in tables]
    batches, firsts, key_firsts, first_keys = torch.arange(batch), which * 0, which * 0, which * 0
    if isinstance(plan, PackedPlan):
        batches, firsts = which * 0, _starts(which, [each.length for each in plans])
        key_firsts, first_keys = (
            _starts(which, sizes) for sizes in ([each.key_length for each in plans], map(len, slots))
        )
    sequences = torch.stack([which, batches, firsts, first_keys], dim=1).contiguous()
    if all(each.layout.in_order for each in plans):
        return Rows(array, sequences, batch, plan.key_length, tables)
    # An empty slot holds the first token of its own sequence: NaN in another one must not come near.
    index, filled = slots[0].clamp(min=0), slots[0] >= 0
    if isinstance(plan, PackedPlan):
        own = [slots[number] for number in which]
        filled = torch.cat([filled[:0], *(each >= 0 for each in own)])
        index = torch.cat([which[:0], *(each.clamp(min=0) + at for each, at in zip(own, key_firsts, strict=True))])
    place = torch.argsort(index.where(filled, -1), stable=True)[len(index) - plan.key_length :]
    return Rows(array, sequences, batch, plan.key_length, tables, index, place, None if filled.all() else filled)


def _sequences(plan: Plan | PackedPlan, batch: int) -> tuple[tuple[Plan, ...], Tensor]:
    """The different plans, and which of them each sequence has."""
    if isinstance(plan, Plan):
        return (plan,), torch.zeros(batch, dtype=torch.int64)
    which, count = plan.which, len(plan.plans)
    known = which.ndim == 1 and which.dtype == torch.int64 and bool(((which >= 0) & (which < count)).all())
    if not known or (plan.length, plan.key_length) != (plan.sum("length"), plan.sum("key_length")):
        raise ValueError(f"The plan of several sequences for {plan.length} tokens contradicts itself.")
    return plan.plans, which


def _starts(which: Tensor, sizes: Iterable[int]) -> Tensor:
    """Where each sequence begins in a row, of plans that take so much of it."""
    each = torch.tensor(list(sizes), dtype=torch.int64)[which]
    return each.cumsum(0) - each


def _select(t: Tensor, index: Tensor) -> Tensor:
    """Tokens of "b h n c" by number; over flat rows, which is twice as fast, if the tensor is contiguous."""
    if not t.is_contiguous():
        return t.index_select(2, index)
    each = torch.arange(t.shape[0] * t.shape[1])[:, None] * t.shape[2]
    return t.view(-1, t.shape[3]).index_select(0, (each + index).flatten()).view(*t.shape[:2], -1, t.shape[3])


@lru_cache(maxsize=PLANS)
def _tables(plan: Plan) -> dict[str, Tensor]:
    """The plan's groups as one table, row by row, and their masks one after the other; and its key slots: the token in
    each, -1 if it is empty."""
    blocks, block, query_blocks = plan.layout.blocks, plan.layout.block, plan.query_blocks
    counts, mask_at, mask_step = (torch.full((query_blocks,), value) for value in (0, -1, 1))
    rows = torch.cat([counts[:0], *(group.rows for group in plan.groups)])
    _require(plan, len(rows.unique()) == len(rows) and bool(((rows >= 0) & (rows < query_blocks)).all()))
    for group in plan.groups:
        counts[group.rows] = group.columns.shape[1]
    start = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    columns, masks, size = torch.zeros(int(start[-1]), dtype=torch.int64), [], 0
    for group in plan.groups:
        columns[start[group.rows][:, None] + torch.arange(group.columns.shape[1])] = group.columns
        if group.mask is not None:
            each, queries, keys = group.mask.shape
            _require(plan, each in (1, len(group.rows)) and queries in (1, block))
            _require(plan, keys == group.columns.shape[1] * block and group.mask.dtype == torch.bool)
            own = torch.arange(len(group.rows)) * (queries * keys) * (each > 1)
            mask_at[group.rows], mask_step[group.rows] = size + own, queries
            masks.append(group.mask.transpose(1, 2).flatten())
            size += group.mask.numel()
    n, index = plan.num_global, plan.index.contiguous()
    body = plan.key_length - n
    _require(plan, 0 <= n <= plan.length and plan.layout.length == body and len(index) == blocks * block)
    in_order = plan.layout.in_order
    _require(plan, (in_order and not n) if plan.pattern is None else plan.length == plan.key_length)
    _require(plan, index.dtype == torch.int64 and bool(((index >= -1) & (index < body)).all()))
    _require(plan, bool(((columns >= 0) & (columns < blocks)).all()))
    tables = {"start": start, "columns": columns, "mask_at": mask_at, "mask_step": mask_step}
    tables["masks"] = torch.cat(masks) if masks else torch.zeros(0, dtype=torch.bool)
    if in_order:
        return {**tables, "slots": torch.arange(plan.key_length)}
    return {**tables, "index": index, "slots": torch.cat([torch.arange(n), torch.where(index < 0, -1, index + n)])}


def _require(plan: Plan, condition: bool) -> None:
    if not condition:
        raise ValueError(f"The plan of {plan.pattern or 'all pairs'} for {plan.length} tokens contradicts itself.")
