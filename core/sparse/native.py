"""The blockwise walk as C++ for CPUs (native.cpp), compiled in a second or two when it is first needed.

Matrix products are torch's own BLAS. Where there is no compiler, or no such BLAS, `why_not` says so and the eager
kernel serves. The C++ trusts what it is given, so all of that is checked here.
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
from .plan import Plan

MOST_PARTS = 4  # sums of dk and dv side by side, where threads outnumber heads
MOST = 2**30  # tokens, features, and elements between two tokens: BLAS counts in 32 bits
DTYPES = {torch.float32: "float", torch.float64: "double"}
HALVES = (torch.bfloat16, torch.float16)  # computed in float
DONE, NOT_FINITE, NO_MEMORY = range(3)  # what may become of a call, as in native.cpp


class _View(ctypes.Structure):
    _fields_ = [("data", ctypes.c_void_p), *((name, ctypes.c_int64) for name in ("part", "batch", "head", "token"))]

    @classmethod
    def of(cls, t: Tensor) -> "_View":
        """Of "part b h n c", or "b h n c" for all parts."""
        if t.stride(-1) != 1 or not t.shape[-1] <= t.stride(-2) <= MOST:
            raise ValueError(f"The native kernel cannot read a tensor with strides {t.stride()}.")
        return cls(t.data_ptr(), *(t.stride() if t.ndim == 5 else (0, *t.stride()))[:4])


_NUMBERS = ("threads", "parts", "batch", "heads", "first", "blocks", "block", "length", "c", "e", "causal")
_TABLES = ("index", "start", "columns", "mask_at", "mask_row", "masks", "hidden", "hidden_first")
_VIEWS = ("q", "k", "v", "k_first", "v_first", "out", "grad", "dq", "dk", "dv", "dk_first", "dv_first")


class _Call(ctypes.Structure):
    """As in native.cpp."""

    _fields_ = [
        ("gemm", ctypes.c_void_p),
        ("scale", ctypes.c_double),
        ("lift", ctypes.c_double),
        ("dropped", ctypes.c_int64),
        ("seed", ctypes.c_int64),
        *((name, ctypes.c_int64) for name in _NUMBERS),
        *((name, ctypes.c_void_p) for name in _TABLES),
        *((name, _View) for name in _VIEWS),
        ("lse", ctypes.c_void_p),
        ("outcome", ctypes.c_int64),
    ]


class Kernel(NamedTuple):
    """The compiled kernel and, for each dtype, the address of the matrix product that it is to use."""

    library: ctypes.CDLL
    products: dict[torch.dtype, int]


@constant_in_graphs
def why_not() -> str:
    """Why there is no compiled kernel on this machine; empty if there is one."""
    found = _kernel()
    return found if isinstance(found, str) else ""


@cache
def _kernel() -> Kernel | str:
    """The kernel, or why there is none."""
    blas = ctypes.CDLL(LIBRARY)  # and what it is linked to: torch's BLAS
    try:
        products = {torch.float32: blas.sgemm_, torch.float64: blas.dgemm_}
    except AttributeError:
        return "this torch comes without a BLAS"
    try:
        library = build.load(Path(__file__).with_suffix(".cpp").read_text())
    except (build.BuildError, OSError) as error:
        return f"the C++ kernel can't be compiled here: {error}"
    return Kernel(library, {dtype: ctypes.cast(each, ctypes.c_void_p).value for dtype, each in products.items()})


class Options(NamedTuple):
    scale: float
    dropout: float = 0.0
    seed: int = 0


def forward(
    q: Tensor, k: Tensor, v: Tensor, real: Tensor | None, plan: Plan, options: Options
) -> tuple[Tensor, Tensor] | None:
    """Output "b h n e" and log-sum-exp "b h n"; None if a NaN or inf came up: the eager kernel knows whose it is.

    real: which keys may be attended to, "b n".
    """
    dtype = q.dtype
    _check(plan, options, real, q=q, k=k, v=v)
    q, k, v = (_ready(t) for t in (q, k, v))
    out, lse = q.new_empty(*q.shape[:3], v.shape[-1]), q.new_empty(q.shape[:3])
    views = {"q": q, "out": out, **_sides("k", *_split(plan, k)), **_sides("v", *_split(plan, v))}
    if not _run("forward", plan, views, real, lse, options, parts=1):
        return None
    return out.to(dtype), lse


def backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    real: Tensor | None,
    out: Tensor,
    lse: Tensor,
    plan: Plan,
    options: Options,
) -> tuple[Tensor, Tensor, Tensor] | None:
    """Gradients of q, k and v; None if a NaN or inf came up."""
    _check(plan, options, real, q=q, k=k, v=v, grad=grad, out=out, lse=lse)
    dtype, threads, heads = q.dtype, torch.get_num_threads(), q.shape[0] * q.shape[1]
    parts = 1 if heads % threads == 0 else min(-(-2 * threads // heads), MOST_PARTS)
    q, k, v, out, grad, lse = (*map(_ready, (q, k, v, out, grad)), lse.resolve_neg().contiguous())
    dq = q.new_empty(q.shape)
    views = {"q": q, "out": out, "grad": grad, "dq": dq}
    sums = {}
    for name, t in (("k", k), ("v", v)):
        first, body = _split(plan, t)
        sums[name] = t.new_empty(parts, *t.shape[:2], first.shape[2] + body.shape[2], t.shape[3])
        views |= _sides(name, first, body)
        views |= _sides("d" + name, sums[name][:, :, :, : plan.first], sums[name][:, :, :, plan.first :])
    if not _run("backward", plan, views, real, lse, options, parts):
        return None
    dk, dv = (_join(plan, t[0] if parts == 1 else t.sum(dim=0)) for t in sums.values())
    return dq.to(dtype), dk.to(dtype), dv.to(dtype)


def _run(
    name: str, plan: Plan, views: dict[str, Tensor], real: Tensor | None, lse: Tensor, options: Options, parts: int
) -> bool:
    kernel = _kernel()
    (b, h, n, c), e, dtype = views["q"].shape, views["out"].shape[-1], views["q"].dtype
    tables = {**_tables(plan), **_hidden(plan, real, b)}
    call = _Call(
        gemm=kernel.products[dtype],
        scale=options.scale,
        lift=1 / (1 - options.dropout) if options.dropout < 1 else 0,
        dropped=round(options.dropout * 2**32),
        seed=options.seed,
        threads=torch.get_num_threads(),
        parts=parts,
        batch=b,
        heads=h,
        first=plan.first,
        blocks=plan.layout.blocks,
        block=plan.layout.block,
        length=n - plan.first,
        c=c,
        e=e,
        causal=plan.causal,
        lse=lse.data_ptr(),
        **{key: table.data_ptr() for key, table in tables.items()},
        **{key: _View.of(t) for key, t in views.items()},
    )
    getattr(kernel.library, f"{name}_{DTYPES[dtype]}")(ctypes.byref(call))
    if call.outcome == NO_MEMORY:
        raise MemoryError(f"There is not enough memory for sparse attention with {plan.first} global tokens.")
    return call.outcome == DONE


def _check(plan: Plan, options: Options, real: Tensor | None, **tensors: Tensor) -> None:
    """Refuse whatever would have the kernel read or write where nothing of it is."""
    if problem := why_not():
        raise ValueError(f"There is no native kernel: {problem}.")
    if not (0 <= options.dropout <= 1 and math.isfinite(options.scale)):
        raise ValueError(f"The native kernel needs a probability of dropout and a finite scale, not {options}.")
    q, v = tensors["q"], tensors["v"]
    if q.ndim != 4 or v.ndim != 4 or not all(0 < size <= MOST for size in (*q.shape, v.shape[3])):
        raise ValueError(f"The native kernel needs q and v of 4 axes, not {tuple(q.shape)} and {tuple(v.shape)}.")
    if q.dtype not in (*DTYPES, *HALVES):
        raise ValueError(f"The native kernel computes in floating-point numbers, not {q.dtype}.")
    b, h, n, c = q.shape[0], q.shape[1], plan.length, q.shape[3]
    shapes = {"q": (b, h, n, c), "k": (b, h, n, c), "lse": (b, h, n)}
    dtypes = {"lse": torch.promote_types(q.dtype, torch.float32)}
    for name, t in tensors.items():
        _check_memory(name, t, shapes.get(name, (b, h, n, v.shape[3])), dtypes.get(name, q.dtype))
    if real is not None:
        shared = real.shape if real.ndim == 2 else (b, n)
        _check_memory("the mask", real, (1 if shared[0] == 1 else b, 1 if shared[1] == 1 else n), torch.bool)


def _check_memory(name: str, t: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    if t.shape != shape or t.dtype != dtype or t.device.type != "cpu" or t.layout != torch.strided:
        wanted, given = f"{shape} {dtype} cpu", f"{tuple(t.shape)} {t.dtype} {t.device} {t.layout}"
        raise ValueError(f"The native kernel needs {name} as {wanted}, not {given}.")
    last = t.storage_offset() + sum((size - 1) * stride for size, stride in zip(t.shape, t.stride(), strict=True))
    if (last + 1) * t.element_size() > t.untyped_storage().nbytes():
        raise ValueError(f"The native kernel cannot read {name}: its memory has been freed.")


def _ready(t: Tensor) -> Tensor:
    """In a dtype that the kernel knows, and with whole rows that BLAS can count."""
    t = t.resolve_neg() if t.dtype in DTYPES else t.float()
    whole = t.stride(-1) == 1 and t.shape[-1] <= t.stride(-2) <= MOST
    return t if whole else t.clone(memory_format=torch.contiguous_format)  # contiguous() may leave odd strides


# --- keys: the global tokens', and the body's slot by slot ----------------------------------------------------------


def _split(plan: Plan, t: Tensor) -> tuple[Tensor, Tensor]:
    first, body = t[:, :, : plan.first], t[:, :, plan.first :]
    return first, body if plan.layout.in_order else _select(body, plan.index.clamp(min=0))


def _join(plan: Plan, t: Tensor) -> Tensor:
    """The inverse of `_split`, of its parts side by side."""
    if plan.layout.in_order:
        return t
    place = torch.argsort(plan.index, stable=True)[-plan.layout.length :]
    return _select(t, torch.cat([torch.arange(plan.first), plan.first + place]))


def _select(t: Tensor, index: Tensor) -> Tensor:
    """Tokens of "b h n c" by number; over flat rows, which is twice as fast, where they lie so."""
    if not t.is_contiguous():
        return t.index_select(2, index)
    each = torch.arange(t.shape[0] * t.shape[1])[:, None] * t.shape[2]
    return t.view(-1, t.shape[3]).index_select(0, (each + index).flatten()).view(*t.shape[:2], -1, t.shape[3])


def _sides(name: str, first: Tensor, body: Tensor) -> dict[str, Tensor]:
    return {name: body, f"{name}_first": first}


def _hidden(plan: Plan, real: Tensor | None, batch: int) -> dict[str, Tensor]:
    """Keys that nobody may attend to: padding, and a grid's empty slots."""
    empty = plan.index < 0
    if real is None and (plan.layout.in_order or not empty.any()):
        return {}
    real = torch.ones(batch, plan.length, dtype=torch.bool) if real is None else real.expand(batch, plan.length)
    hidden = ~real[:, plan.first :][:, plan.index.clamp(min=0)] | empty
    return {"hidden": hidden.contiguous(), "hidden_first": (~real[:, : plan.first]).contiguous()}


@lru_cache(maxsize=64)
def _tables(plan: Plan) -> dict[str, Tensor]:
    """The plan's groups as one table, row by row; and their masks behind each other."""
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
    body, index = plan.length - plan.first, plan.index.contiguous()
    _require(plan, 0 <= plan.first <= plan.length and plan.layout.length == body and len(index) == blocks * block)
    _require(plan, index.dtype == torch.int64 and bool(((index >= -1) & (index < body)).all()))
    _require(plan, bool(((columns >= 0) & (columns < blocks)).all()))
    tables = {"start": start, "columns": columns, "mask_at": mask_at, "mask_row": mask_row}
    tables["masks"] = torch.cat(masks) if masks else torch.zeros(0, dtype=torch.bool)
    return tables if plan.layout.in_order else {**tables, "index": index}


def _require(plan: Plan, sound: bool) -> None:
    if not sound:
        raise ValueError(f"The plan of {plan.pattern} for {plan.length} tokens contradicts itself.")
