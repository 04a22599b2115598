"""Sparse attention, and attention in rows of sequences, by torch's compiled FlexAttention.

The block pairs come from the plans (flex_table.py). Who may attend to whom inside a block and what is added to the
logits are read from tensors that are arguments of the compiled function: a batch with another mask, other lengths or
another pattern needs no new graph. On CPUs FlexAttention has no backward pass (torch to 2.15), and compiling takes a
while.
"""

import math
from functools import cache
from typing import NamedTuple, no_type_check

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..private_torch import in_dispatch_mode, one_graph_for_all_shapes, outside_graphs
from ..sparse.pattern import BLOCK
from ..sparse.plan import make_plan
from .call import Call
from .flex_table import Table, table_of_batch, table_of_row

WIDTHS = (16, 256)  # of heads, that the kernel takes on CUDA
POISON = 2.0**100  # a logit that outweighs all others, and stays finite in every step of the kernel


def why_not(call: Call) -> str:
    """Why FlexAttention cannot serve a call with a pattern, or in a row; empty if it can."""
    q, v, relation = call.q, call.v, call.relation
    if call.dropout:
        return "it has no dropout"
    if q.dtype == torch.float64:
        return "it has no double precision"
    if not torch.compiler.is_compiling() and in_dispatch_mode():
        return "a TorchDispatchMode is active, in which FlexAttention is not compiled"
    if q.device.type == "cpu" and _learns(call):
        return "FlexAttention has no backward pass on CPUs"
    if q.device.type == "cuda" and not all(WIDTHS[0] <= t.shape[3] <= WIDTHS[1] for t in (q, v)):
        return f"heads must be {WIDTHS[0]} to {WIDTHS[1]} wide"
    if relation.key_packing is not None:
        return "packed sequences attend to themselves only"
    return ""


@outside_graphs  # the kernel reads nothing that the same graph makes, but only what is given to it
def attend_flex(call: Call) -> Float[Tensor, "b h n e"]:
    """Attention by a pattern, or in a row, under the mask contract; there must be as many queries as keys.

    A NaN or inf makes the whole output of the queries that attend to it NaN; gradients through these outputs are 0.
    """
    # Rows differ in every step; for CPUs torch (to 2.14) makes code of sizes that vary which no compiler takes.
    in_row = call.relation.packing is not None
    sizes_vary = False if call.q.device.type == "cpu" else True if in_row else None
    with one_graph_for_all_shapes():
        return _compiled(sizes_vary)(*_inputs(call))


def _inputs(call: Call) -> "_Inputs":
    q, k, v, relation = call.q, call.k, call.v, call.relation
    mask = relation.key_mask(k)
    if relation.packing is not None:
        table = table_of_row(relation.packing, relation.pattern, q.device)
    else:
        assert relation.pattern is not None
        plan = make_plan(relation.pattern, q.shape[2], relation.prefix, relation.grid)
        table = table_of_batch(plan, mask is not None, q.device)
    token = table.token.flatten()
    slots, real = token.clamp(min=0), token >= 0
    if mask is not None:
        real = real & mask.expand(q.shape[0], -1)[:, slots]
    added = None if relation.bias is None else _added(call, table)
    good = None
    if table.cut or added is not None:
        finite = [torch.linalg.vector_norm(t.detach(), torch.inf, dim=-1).isfinite() for t in (q, k, v)]
        good = finite[0][:, :, slots], (finite[1] & finite[2])[:, :, slots]
    return _Inputs(q, k, v, table, real, added, good, _Options(call.factor, _learns(call)))


class _Inputs(NamedTuple):
    """Of `_attend`, which its graph does not make itself.

    real: slots whose key is neither missing nor masked. good: finite queries, and finite keys with finite values, where
    single pairs are forbidden; else None.
    """

    q: Float[Tensor, "b h n c"]
    k: Float[Tensor, "b h n c"]
    v: Float[Tensor, "b h n e"]
    table: Table
    real: Bool[Tensor, "slots"] | Bool[Tensor, "b slots"]
    added: "_Added | None"
    good: tuple[Bool[Tensor, "b h slots"], ...] | None
    options: "_Options"


class _Options(NamedTuple):
    """The factor of the logits, and whether a backward pass will follow."""

    scale: float
    learns: bool


class _Added(NamedTuple):
    """What is added to the logits, with one axis for all pairs; row and column: what the slots of a query and of a key
    add up to there."""

    pairs: Float[Tensor, "#b #h pairs"]
    row: Int[Tensor, "slots"]
    column: Int[Tensor, "slots"]


def _added(call: Call, table: Table) -> _Added:
    bias, relation, number = call.relation.bias, call.relation, table.number
    wide = torch.promote_types(call.q.dtype, torch.float32)  # gradients are added up in it
    if relation.packing is not None:
        assert bias is not None
        shapes = [(1, call.q.shape[1], place.length, place.length) for place in relation.packing]
        flat = [own.to(wide).expand(shape).flatten(2) for own, shape in zip(bias, shapes, strict=True)]
        beyond = call.q.new_zeros((1, call.q.shape[1], int(relation.packing.lengths.max())), dtype=wide)
        # Some zeros at the end: a forbidden pair of the last query and a key of a longer sequence is looked up, too.
        return _Added(torch.cat([*flat, beyond], dim=2), table.first_pair, number)
    assert isinstance(bias, Tensor)
    rows, columns = bias.shape[2:]
    row, column = number * (columns if rows > 1 else 0), number * (1 if columns > 1 else 0)
    return _Added(bias.to(wide).flatten(2), row, column)


def _learns(call: Call) -> bool:
    bias = call.relation.bias
    biases = [] if bias is None else [bias] if isinstance(bias, Tensor) else bias
    return torch.is_grad_enabled() and any(t.requires_grad for t in (call.q, call.k, call.v, *biases))


@cache
def _compiled(sizes_vary: bool | None):
    """sizes_vary: None where a graph keeps its sizes until a second one comes."""
    return torch.compile(_attend, dynamic=sizes_vary, fullgraph=True)


@no_type_check  # the checkers of tests are Python that no graph can hold
def _attend(
    q: Float[Tensor, "b h n c"],
    k: Float[Tensor, "b h n c"],
    v: Float[Tensor, "b h n e"],
    table: Table,
    real: Bool[Tensor, "slots"] | Bool[Tensor, "b slots"],
    added: _Added | None,
    good: tuple[Bool[Tensor, "b h slots"], ...] | None,
    options: _Options,
) -> Float[Tensor, "b h n e"]:
    """See `_Inputs`; a function of tensors and constants, for torch.compile."""
    from torch.nn.attention.flex_attention import AuxRequest, BlockMask, flex_attention  # two seconds to import

    wide = torch.promote_types(q.dtype, torch.float32)
    for t in (k, v):  # a graph for all sizes does not know it
        torch._check(t.shape[0] == q.shape[0])
        torch._check(t.shape[2] == q.shape[2])
    token = table.token.flatten()
    if table.moved:
        q, k, v = (_Moved.apply(t, token, table.place) for t in (q, k, v))
    if real.ndim == 2:
        k, v = (t.where(real[:, None, :, None], 0) for t in (k, v))
    score_mod = None
    if good is not None:
        # A key can be forbidden to some queries of a block only, and 0 * NaN is NaN: the kernel gets 0 instead, and
        # who attends to it is found by a logit that outweighs all others. A NaN would do in a forward pass alone.
        good_q, good_k = good
        q, k, v = (t.where(t.isfinite(), 0) for t in (q, k, v))
        poison = POISON if options.learns else math.nan

        def score_mod(score, b, h, i, j):
            score = score.to(wide)
            if added is not None:
                samples, heads, _ = added.pairs.shape
                sample, head = b if samples > 1 else b * 0, h if heads > 1 else h * 0
                score = score + added.pairs[sample, head, added.row[i] + added.column[j]]
            bad = ~(good_q[b, h, i] & good_k[b, h, j]) & (score > -math.inf)
            return torch.where(bad | ~(score < POISON / 2), poison, score)

    def mask_mod(b, h, i, j):
        allowed = real[j] if real.ndim == 1 else real[b, j]
        if table.cut:
            kind = table.kinds[i // BLOCK, table.inside[j // BLOCK]]
            allowed = allowed & table.masks[kind * BLOCK**2 + i % BLOCK * BLOCK + j % BLOCK]
        return allowed

    lists = [t for pair in zip(table.counts, table.columns, strict=True) for t in pair]
    blocks = BlockMask((q.shape[2], q.shape[2]), *lists, BLOCK_SIZE=(BLOCK, BLOCK), mask_mod=mask_mod)
    inputs = q, k, v, score_mod, blocks, options.scale
    if good is not None and options.learns:
        out, aux = flex_attention(*inputs, kernel_options=_tiles(q, v), return_aux=AuxRequest(lse=True))
        out = out.masked_fill((aux.lse > POISON / 4)[..., None], math.nan)
    else:
        out = flex_attention(*inputs, kernel_options=_tiles(q, v))
    return _Moved.apply(out, table.place, token) if table.moved else out


def _tiles(q: Tensor, v: Tensor) -> dict[str, int] | None:
    """Tiles for the kernels on CUDA: torch's own are larger than a block on some devices, which not all its versions
    take back by themselves."""
    if q.device.type != "cuda":
        return None
    narrow = max(q.shape[3], v.shape[3]) <= 128
    if q.dtype == torch.float32:
        return {"BLOCK_M": 64, "BLOCK_N": 32} if narrow else {"BLOCK_M": 32, "BLOCK_N": 16}
    if narrow:
        return {"BLOCK_M": 64, "BLOCK_N": 64, "BLOCK_M1": 32, "BLOCK_N1": 64, "BLOCK_M2": 64, "BLOCK_N2": 32}
    return {"BLOCK_M": 64, "BLOCK_N": 32}


@no_type_check
class _Moved(torch.autograd.Function):
    """Tokens to their slots or back; an empty slot gets 0. The gradient goes the other way, and nothing is added up."""

    @staticmethod
    def forward(ctx, t, index, back):
        ctx.save_for_backward(back)
        return _moved(t, index)

    @staticmethod
    def backward(ctx, grad):
        (back,) = ctx.saved_tensors
        return _moved(grad, back), None, None


@no_type_check
def _moved(t: Float[Tensor, "b h n c"], index: Int[Tensor, "m"]) -> Float[Tensor, "b h m c"]:
    return t.index_select(2, index.clamp(min=0)).where((index >= 0)[:, None], 0)
