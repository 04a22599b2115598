"""Blockwise attention as C++ for CPUs (native.cpp), which is compiled in a second or two when it is first needed.

Matrix products are torch's own BLAS. Where there is no compiler, or no such BLAS, `why_not` says so and the kernel in
plain torch serves (blockwise.py). The C++ checks nothing, so everything that it is given is checked here.
"""

import ctypes
import math
from functools import cache, lru_cache
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ..private_torch import LIBRARY, constant_in_graphs
from . import build
from .call import KernelCall
from .plan import Plan

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


_NUMBERS = ("threads", "parts", "batch", "heads", "num_global", "blocks", "block", "length", "c", "e", "causal")
_TABLES = ("index", "start", "columns", "mask_at", "mask_row", "masks", "key_mask", "global_key_mask")
_VIEWS = ("q", "k", "v", "k_global", "v_global", "out", "grad", "dq", "dk", "dv", "dk_global", "dv_global")


class _Call(ctypes.Structure):
    """As in native_call.h."""

    _fields_ = [
        ("gemm", ctypes.c_void_p),
        ("scale", ctypes.c_double),
        ("dropout_scale", ctypes.c_double),
        ("dropped", ctypes.c_int64),
        ("seed", ctypes.c_int64),
        *((name, ctypes.c_int64) for name in _NUMBERS),
        *((name, ctypes.c_void_p) for name in _TABLES),
        *((name, _View) for name in _VIEWS),
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


def forward(call: KernelCall) -> tuple[Tensor, Tensor] | None:
    """Output "b h n e" and log-sum-exp "b h n"; None if there was a NaN or inf: the kernel in plain torch finds
    the queries that they belong to."""
    _check(call)
    dtype, plan = call.q.dtype, call.plan
    q, k, v = (_ready(t) for t in (call.q, call.k, call.v))
    out, lse = q.new_empty(*q.shape[:3], v.shape[-1]), q.new_empty(q.shape[:3])
    views = {"q": q, "out": out, **_sides("k", *_split(plan, k)), **_sides("v", *_split(plan, v))}
    if not _run("forward", call, views, lse):
        return None
    return out.to(dtype), lse


def backward(call: KernelCall, grad: Tensor, out: Tensor, lse: Tensor) -> tuple[Tensor, Tensor, Tensor] | None:
    """Gradients of q, k and v; None if there was a NaN or inf."""
    _check(call, grad=grad, out=out, lse=lse)
    plan, dtype, threads = call.plan, call.q.dtype, torch.get_num_threads()
    heads = call.q.shape[0] * call.q.shape[1]
    parts = 1 if heads % threads == 0 else min(-(-2 * threads // heads), MOST_PARTS)
    q, k, v, out, grad = map(_ready, (call.q, call.k, call.v, out, grad))
    dq = q.new_empty(q.shape)
    views = {"q": q, "out": out, "grad": grad, "dq": dq}
    sums = {}
    for name, t in (("k", k), ("v", v)):
        global_keys, body = _split(plan, t)
        sums[name] = t.new_empty(parts, *t.shape[:2], global_keys.shape[2] + body.shape[2], t.shape[3])
        views |= _sides(name, global_keys, body)
        views |= _sides("d" + name, sums[name][:, :, :, : plan.num_global], sums[name][:, :, :, plan.num_global :])
    if not _run("backward", call, views, lse.resolve_neg().contiguous(), parts):
        return None
    dk, dv = (_join(plan, t[0] if parts == 1 else t.sum(dim=0)) for t in sums.values())
    return dq.to(dtype), dk.to(dtype), dv.to(dtype)


def _run(name: str, call: KernelCall, views: dict[str, Tensor], lse: Tensor, parts: int = 1) -> bool:
    kernel, plan = _kernel(), call.plan
    assert isinstance(kernel, Kernel)  # _check has made sure
    (b, h, n, c), e, dtype = views["q"].shape, views["out"].shape[-1], views["q"].dtype
    tables = {**_tables(plan), **_key_masks(call)}
    arguments = _Call(
        gemm=kernel.products[dtype],
        scale=call.scale,
        dropout_scale=1 / (1 - call.dropout) if call.dropout < 1 else 0,
        dropped=round(call.dropout * 2**32),
        seed=call.seed,
        threads=torch.get_num_threads(),
        parts=parts,
        batch=b,
        heads=h,
        num_global=plan.num_global,
        blocks=plan.layout.blocks,
        block=plan.layout.block,
        length=n - plan.num_global,
        c=c,
        e=e,
        causal=plan.causal,
        lse=lse.data_ptr(),
        **{key: table.data_ptr() for key, table in tables.items()},
        **{key: _View.of(t) for key, t in views.items()},
    )
    getattr(kernel.library, f"{name}_{DTYPES[dtype]}")(ctypes.byref(arguments))
    if arguments.outcome == NO_MEMORY:
        raise MemoryError(f"There is not enough memory for sparse attention with {plan.num_global} global tokens.")
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
    b, h, n, c = q.shape[0], q.shape[1], call.plan.length, q.shape[3]
    shapes = {"q": (b, h, n, c), "k": (b, h, n, c), "lse": (b, h, n)}
    dtypes = {"lse": torch.promote_types(q.dtype, torch.float32)}
    for name, t in {"q": q, "k": call.k, "v": v, **results}.items():
        _check_memory(name, t, shapes.get(name, (b, h, n, v.shape[3])), dtypes.get(name, q.dtype))
    if (mask := call.key_mask) is not None:
        shared = mask.shape if mask.ndim == 2 else (b, n)
        _check_memory("the mask", mask, (1 if shared[0] == 1 else b, 1 if shared[1] == 1 else n), torch.bool)


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


# --- keys: those of the global tokens, and those of the body slot by slot ---------------------------------------------


def _split(plan: Plan, t: Tensor) -> tuple[Tensor, Tensor]:
    global_tokens, body = t[:, :, : plan.num_global], t[:, :, plan.num_global :]
    return global_tokens, body if plan.layout.in_order else _select(body, plan.index.clamp(min=0))


def _join(plan: Plan, t: Tensor) -> Tensor:
    """The inverse of `_split`, of its two parts in one tensor."""
    if plan.layout.in_order:
        return t
    place = torch.argsort(plan.index, stable=True)[-plan.layout.length :]
    return _select(t, torch.cat([torch.arange(plan.num_global), plan.num_global + place]))


def _select(t: Tensor, index: Tensor) -> Tensor:
    """Tokens of "b h n c" by number; over flat rows, which is twice as fast, if the tensor is contiguous."""
    if not t.is_contiguous():
        return t.index_select(2, index)
    each = torch.arange(t.shape[0] * t.shape[1])[:, None] * t.shape[2]
    return t.view(-1, t.shape[3]).index_select(0, (each + index).flatten()).view(*t.shape[:2], -1, t.shape[3])


def _sides(name: str, global_tokens: Tensor, body: Tensor) -> dict[str, Tensor]:
    return {name: body, f"{name}_global": global_tokens}


def _key_masks(call: KernelCall) -> dict[str, Tensor]:
    """The keys that may be attended to: neither padding nor empty slots of a grid. Empty if all may."""
    plan, batch = call.plan, call.q.shape[0]
    filled = plan.index >= 0
    if call.key_mask is None and (plan.layout.in_order or filled.all()):
        return {}
    mask = torch.ones(1, 1, dtype=torch.bool) if call.key_mask is None else call.key_mask
    mask = mask.expand(batch, plan.length)
    body = mask[:, plan.num_global :][:, plan.index.clamp(min=0)] & filled
    return {"key_mask": body.contiguous(), "global_key_mask": mask[:, : plan.num_global].contiguous()}


@lru_cache(maxsize=64)
def _tables(plan: Plan) -> dict[str, Tensor]:
    """The plan's groups as one table, row by row, and their masks one after the other."""
    blocks, block = plan.layout.blocks, plan.layout.block
    counts, mask_at, mask_row = (torch.full((blocks,), value) for value in (0, -1, 0))
    rows = torch.cat([counts[:0], *(group.rows for group in plan.groups)])
    _require(plan, len(rows.unique()) == len(rows) and bool(((rows >= 0) & (rows < blocks)).all()))
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
    body, index = plan.length - plan.num_global, plan.index.contiguous()
    _require(plan, 0 <= plan.num_global <= plan.length and plan.layout.length == body and len(index) == blocks * block)
    _require(plan, index.dtype == torch.int64 and bool(((index >= -1) & (index < body)).all()))
    _require(plan, bool(((columns >= 0) & (columns < blocks)).all()))
    tables = {"start": start, "columns": columns, "mask_at": mask_at, "mask_row": mask_row}
    tables["masks"] = torch.cat(masks) if masks else torch.zeros(0, dtype=torch.bool)
    return tables if plan.layout.in_order else {**tables, "index": index}


def _require(plan: Plan, condition: bool) -> None:
    if not condition:
        raise ValueError(f"The plan of {plan.pattern} for {plan.length} tokens contradicts itself.")
