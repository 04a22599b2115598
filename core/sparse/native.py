"""Blockwise attention as C++ for CPUs (native.cpp), which is compiled in a second or two when it is first needed.

Matrix products are torch's own BLAS. Where there is no compiler, or no such BLAS, `why_not` says so and the kernel in
plain torch serves (blockwise.py). The C++ checks nothing, so everything that it is given is checked here.
"""

import ctypes
import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ..private_torch import LIBRARY, constant_in_graphs
from . import build
from .call import KernelCall
from .plan import PLANS, PackedPlan, Plan

MOST_PARTS = 4  # sums of dk and dv side by side, where threads outnumber heads
MOST = 2**30  # tokens, features, and elements between two tokens: BLAS counts in 32 bits
DTYPES = {torch.float32: "float", torch.float64: "double"}
HALVES = (torch.bfloat16, torch.float16)  # computed in float
DONE, NOT_FINITE, NO_MEMORY = range(3)  # the outcomes of a call, as in native_call.h
HEADERS = ("native_call.h", "native_math.h")


class _View(ctypes.Structure):
    _fields_ = [("data", ctypes.c_void_p), *((name, ctypes.c_int64) for name in ("part", "batch", "head", "token"))]

    @classmethod
    def of(cls, t: Tensor) -> "_View":
        """Of "part b h n c", or "b h n c" for all parts."""
        if t.stride(-1) != 1 or not t.shape[-1] <= t.stride(-2) <= MOST:
            raise ValueError(f"The native kernel cannot read a tensor with strides {t.stride()}.")
        return cls(t.data_ptr(), *(t.stride() if t.ndim == 5 else (0, *t.stride()))[:4])


class _Plan(ctypes.Structure):
    """As in native_call.h, like the two below."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("num_global", "block", "causal")),
        *((name, ctypes.c_int64) for name in ("queries", "query_blocks", "keys", "blocks")),
        *((name, ctypes.c_void_p) for name in ("index", "start", "columns", "mask_at", "mask_row", "masks")),
    ]


class _Call(ctypes.Structure):
    _fields_ = [
        ("gemm", ctypes.c_void_p),
        ("scale", ctypes.c_double),
        ("dropout_scale", ctypes.c_double),
        *((name, ctypes.c_int64) for name in ("dropped", "seed", "threads", "parts", "plan_count", "count")),
        *((name, ctypes.c_int64) for name in ("heads", "length", "key_length", "c", "e")),
        *((name, ctypes.c_void_p) for name in ("plans", "sequences", "key_mask")),
        *((name, _View) for name in ("q", "k", "v", "out", "grad", "dq", "dk", "dv")),
        ("lse", ctypes.c_void_p),
        ("outcome", ctypes.c_int64),
    ]


class Kernel(NamedTuple):
    """The compiled kernel and, for each dtype, the address of the matrix product that it uses."""

    library: ctypes.CDLL
    products: dict[torch.dtype, int]


@constant_in_graphs
def why_not() -> str:
    """Why there is no compiled kernel on this machine; empty if there is one."""
    found = _kernel()
    return found if isinstance(found, str) else ""


def load_library(flags: tuple[str, ...] = ()) -> ctypes.CDLL:
    """The compiled kernel; flags: the compiler's, in addition to those of build.py."""
    folder = Path(__file__).parent
    headers = {name: (folder / name).read_text() for name in HEADERS}
    return build.load((folder / "native.cpp").read_text(), flags, headers)


@cache
def _kernel() -> Kernel | str:
    """The kernel, or why there is none."""
    blas = ctypes.CDLL(LIBRARY)  # and what it is linked to: torch's BLAS
    try:
        products = {torch.float32: blas.sgemm_, torch.float64: blas.dgemm_}
    except AttributeError:
        return "this torch comes without a BLAS"
    try:
        library = load_library()
    except (build.BuildError, OSError) as error:
        return f"the C++ kernel can't be compiled here: {error}"
    return Kernel(library, {dtype: ctypes.cast(each, ctypes.c_void_p).value or 0 for dtype, each in products.items()})


def forward(call: KernelCall) -> tuple[Tensor, Tensor, bool]:
    """Output "b h n e", log-sum-exp "b h n", and whether all of the output is finite. If not, the kernel in plain torch
    must find the queries that a NaN or inf belongs to."""
    _check(call)
    dtype = call.q.dtype
    q, k, v = (_ready(t) for t in (call.q, call.k, call.v))
    out = q.new_empty(*q.shape[:3], v.shape[-1])
    lse = q.new_empty(q.shape[:3], dtype=torch.promote_types(dtype, torch.float32))
    rows = _rows(call.plan, len(q))
    finite = _run("forward", call, rows, {"q": q, "out": out, "k": rows.keys(k), "v": rows.keys(v)}, lse)
    return out.to(dtype), lse, finite


def backward(call: KernelCall, grad: Tensor, out: Tensor, lse: Tensor) -> tuple[Tensor, Tensor, Tensor, bool]:
    """Gradients of q, k and v, and whether all of that of q is finite."""
    _check(call, grad=grad, out=out, lse=lse)
    dtype, threads, rows = call.q.dtype, torch.get_num_threads(), _rows(call.plan, len(call.q))
    heads = len(rows.sequences) * call.q.shape[1]
    parts = 1 if heads % threads == 0 else max(min(-(-2 * threads // max(heads, 1)), MOST_PARTS), 1)
    q, k, v, out, grad = map(_ready, (call.q, call.k, call.v, out, grad))
    dq = q.new_empty(q.shape)
    keys = {"k": rows.keys(k), "v": rows.keys(v)}
    sums = {f"d{name}": t.new_empty(parts, *t.shape) for name, t in keys.items()}
    views = {"q": q, "out": out, "grad": grad, "dq": dq, **keys, **sums}
    finite = _run("backward", call, rows, views, lse.resolve_neg().contiguous(), parts)
    dk, dv = (rows.tokens(t[0] if parts == 1 else t.sum(dim=0)) for t in sums.values())
    return dq.to(dtype), dk.to(dtype), dv.to(dtype), finite


def _run(name: str, call: KernelCall, rows: "_Rows", views: dict[str, Tensor], lse: Tensor, parts: int = 1) -> bool:
    kernel = _kernel()
    assert isinstance(kernel, Kernel)  # _check has made sure
    dtype, mask = views["q"].dtype, rows.key_mask(call.key_mask)
    arguments = _Call(
        gemm=kernel.products[dtype],
        scale=call.scale,
        dropout_scale=1 / (1 - call.dropout) if call.dropout < 1 else 0,
        dropped=round(call.dropout * 2**32),
        seed=call.seed,
        threads=torch.get_num_threads(),
        parts=parts,
        plan_count=len(rows.plans),
        count=len(rows.sequences),
        heads=views["q"].shape[1],
        length=views["q"].shape[2],
        key_length=views["k"].shape[2],
        c=views["q"].shape[3],
        e=views["out"].shape[3],
        plans=ctypes.cast(rows.plans, ctypes.c_void_p),
        sequences=rows.sequences.data_ptr(),
        key_mask=None if mask is None else mask.data_ptr(),
        lse=lse.data_ptr(),
        **{key: _View.of(t) for key, t in views.items()},
    )
    getattr(kernel.library, f"{name}_{DTYPES[dtype]}")(ctypes.byref(arguments))
    if arguments.outcome == NO_MEMORY:
        most = max(plan.num_global for plan in rows.plans)
        raise MemoryError(f"There is not enough memory for sparse attention with {most} global tokens.")
    return arguments.outcome == DONE


def _check(call: KernelCall, **results: Tensor) -> None:
    """Raise a ValueError if the kernel would read or write outside of the tensors; results: of a forward pass."""
    if problem := why_not():
        raise ValueError(f"There is no native kernel: {problem}.")
    if not (0 <= call.dropout <= 1 and math.isfinite(call.scale)):
        given = f"a dropout of {call.dropout} and a scale of {call.scale}"
        raise ValueError(f"The native kernel needs a probability of dropout and a finite scale, not {given}.")
    if call.bias is not None:
        raise ValueError("The native kernel takes no bias.")
    q, v = call.q, call.v
    if q.ndim != 4 or v.ndim != 4 or not all(0 < size <= MOST for size in (*q.shape, v.shape[3])):
        raise ValueError(f"The native kernel needs q and v of 4 axes, not {tuple(q.shape)} and {tuple(v.shape)}.")
    if q.dtype not in (*DTYPES, *HALVES):
        raise ValueError(f"The native kernel computes with floating-point numbers, not {q.dtype}.")
    b, h, n, m, c = q.shape[0], q.shape[1], call.plan.length, call.plan.key_length, q.shape[3]
    if isinstance(call.plan, PackedPlan) and b != 1:
        raise ValueError(f"The native kernel takes several sequences in one row, not in {b}.")
    shapes = {"q": (b, h, n, c), "k": (b, h, m, c), "v": (b, h, m, v.shape[3]), "lse": (b, h, n)}
    dtypes = {"lse": torch.promote_types(q.dtype, torch.float32)}
    for name, t in {"q": q, "k": call.k, "v": v, **results}.items():
        _check_memory(name, t, shapes.get(name, (b, h, n, v.shape[3])), dtypes.get(name, q.dtype))
    if (mask := call.key_mask) is not None:
        shared = mask.shape if mask.ndim == 2 else (b, m)
        _check_memory("the mask", mask, (1 if shared[0] == 1 else b, 1 if shared[1] == 1 else m), torch.bool)


def _check_memory(name: str, t: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    if t.shape != shape or t.dtype != dtype or t.device.type != "cpu" or t.layout != torch.strided:
        wanted, given = f"{shape} {dtype} cpu", f"{tuple(t.shape)} {t.dtype} {t.device} {t.layout}"
        raise ValueError(f"The native kernel needs {name} as {wanted}, not {given}.")
    last = t.storage_offset() + sum((size - 1) * stride for size, stride in zip(t.shape, t.stride(), strict=True))
    if (last + 1) * t.element_size() > t.untyped_storage().nbytes():
        raise ValueError(f"The native kernel cannot read {name}: its memory has been freed.")


def _ready(t: Tensor) -> Tensor:
    """The tensor in a dtype that the kernel has, and with whole rows that BLAS can count."""
    t = t.resolve_neg() if t.dtype in DTYPES else t.float()
    whole = t.stride(-1) == 1 and t.shape[-1] <= t.stride(-2) <= MOST
    return t if whole else t.clone(memory_format=torch.contiguous_format)  # contiguous() may leave odd strides


# --- rows: where their sequences and keys are -------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Rows:
    """The sequences of a call, as the kernel takes them.

    plans: an array of `_Plan`. sequences: as in native_call.h. kept: what the array of plans points to. index: the
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

    def tokens(self, t: Tensor) -> Tensor:
        """The inverse of `keys`."""
        return t if self.place is None else _select(t, self.place)

    def key_mask(self, mask: Tensor | None) -> Tensor | None:
        """The slots that may be attended to, neither padding nor empty; None if all may."""
        if mask is None:
            return None if self.filled is None else self.filled.expand(self.batch, -1).contiguous()
        mask = mask.expand(-1, self.tokens_of_row)
        mask = mask if self.index is None else mask[:, self.index]
        mask = mask if self.filled is None else mask & self.filled
        return mask.expand(self.batch, -1).contiguous()


@lru_cache(maxsize=64)
def _rows(plan: Plan | PackedPlan, batch: int) -> _Rows:
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
        return _Rows(array, sequences, batch, plan.key_length, tables)
    # An empty slot holds the first token of its own sequence: NaN in another one must not come near.
    index, filled = slots[0].clamp(min=0), slots[0] >= 0
    if isinstance(plan, PackedPlan):
        own = [slots[number] for number in which]
        filled = torch.cat([filled[:0], *(each >= 0 for each in own)])
        index = torch.cat([which[:0], *(each.clamp(min=0) + at for each, at in zip(own, key_firsts, strict=True))])
    place = torch.argsort(index.where(filled, -1), stable=True)[len(index) - plan.key_length :]
    return _Rows(array, sequences, batch, plan.key_length, tables, index, place, None if filled.all() else filled)


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
    counts, mask_at, mask_row = (torch.full((query_blocks,), value) for value in (0, -1, 0))
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
            mask_at[group.rows], mask_row[group.rows] = size + own, keys * (queries > 1)
            masks.append(group.mask.flatten())
            size += group.mask.numel()
    n, index = plan.num_global, plan.index.contiguous()
    body = plan.key_length - n
    _require(plan, 0 <= n <= plan.length and plan.layout.length == body and len(index) == blocks * block)
    in_order = plan.layout.in_order
    _require(plan, (in_order and not n) if plan.pattern is None else plan.length == plan.key_length)
    _require(plan, index.dtype == torch.int64 and bool(((index >= -1) & (index < body)).all()))
    _require(plan, bool(((columns >= 0) & (columns < blocks)).all()))
    tables = {"start": start, "columns": columns, "mask_at": mask_at, "mask_row": mask_row}
    tables["masks"] = torch.cat(masks) if masks else torch.zeros(0, dtype=torch.bool)
    if in_order:
        return {**tables, "slots": torch.arange(plan.key_length)}
    return {**tables, "index": index, "slots": torch.cat([torch.arange(n), torch.where(index < 0, -1, index + n)])}


def _require(plan: Plan, condition: bool) -> None:
    if not condition:
        raise ValueError(f"The plan of {plan.pattern or 'all pairs'} for {plan.length} tokens contradicts itself.")
