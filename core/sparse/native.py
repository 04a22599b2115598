"""The blockwise walk as C++ for CPUs (native.cpp), compiled in a second or two when it is first needed.

torch.compile's own compiler driver builds it and keeps it in its cache; matrix products are torch's own BLAS. Where
there is no compiler, or no such BLAS, `why_not` says so and the eager kernel serves.
"""

import ctypes
import platform
from functools import cache, lru_cache
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from .plan import Plan, constant_in_graphs

MOST_PARTS = 4  # sums of dk and dv side by side, where threads outnumber heads
DTYPES = {torch.float32: "float", torch.float64: "double"}


class _View(ctypes.Structure):
    _fields_ = [("data", ctypes.c_void_p), *((name, ctypes.c_int64) for name in ("part", "batch", "head", "token"))]

    @classmethod
    def of(cls, t: Tensor) -> "_View":
        """Of "part b h n c", or "b h n c" for all parts."""
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
        ("finite", ctypes.c_int64),
    ]


@constant_in_graphs
def why_not() -> str:
    """Why there is no compiled kernel on this machine; empty if there is one."""
    return _build()[2]


@cache
def _build() -> tuple[ctypes.CDLL | None, dict[torch.dtype, int], str]:
    """The compiled kernel, the address of the matrix product of each dtype, and what went wrong."""
    try:
        from torch._inductor.codecache import CppCodeCache
        from torch._inductor.cpp_builder import is_gcc

        blas = ctypes.CDLL(torch._C.__file__)  # and what it is linked to: torch's BLAS
        products = {torch.float32: blas.sgemm_, torch.float64: blas.dgemm_}
        source = Path(__file__).with_suffix(".cpp").read_text()
        flags = ["-ffp-contract=fast", *(["-ftree-loop-vectorize"] if is_gcc() else [])]
        flags += ["-mprefer-vector-width=512"] if platform.machine() in ("x86_64", "AMD64") else []
        library = CppCodeCache.load(source, extra_flags=tuple(flags))
    except AttributeError:
        return None, {}, "this torch comes without a BLAS"
    except Exception as error:  # whatever a compiler, or the lack of one, may raise
        return None, {}, f"the C++ kernel can't be compiled here: {type(error).__name__}"
    return library, {dtype: ctypes.cast(product, ctypes.c_void_p).value for dtype, product in products.items()}, ""


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
    dtype, threads, heads = q.dtype, torch.get_num_threads(), q.shape[0] * q.shape[1]
    parts = 1 if heads % threads == 0 else min(-(-2 * threads // heads), MOST_PARTS)
    q, k, v, out, grad = (_ready(t) for t in (q, k, v, out, grad))
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
    library, products, _ = _build()
    (b, h, n, c), e, dtype = views["q"].shape, views["out"].shape[-1], views["q"].dtype
    tables = {**_tables(plan), **_hidden(plan, real, b)}
    call = _Call(
        gemm=products[dtype],
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
    getattr(library, f"{name}_{DTYPES[dtype]}")(ctypes.byref(call))
    return bool(call.finite)


def _ready(t: Tensor) -> Tensor:
    """In a dtype that the kernel knows, and with whole rows."""
    t = t if t.dtype in DTYPES else t.float()
    return t if t.stride(-1) == 1 and t.stride(-2) >= t.shape[-1] else t.contiguous()


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
    real = torch.ones(batch, plan.length, dtype=torch.bool) if real is None else real.expand(batch, -1)
    hidden = ~real[:, plan.first :][:, plan.index.clamp(min=0)] | empty
    return {"hidden": hidden.contiguous(), "hidden_first": (~real[:, : plan.first]).contiguous()}


@lru_cache(maxsize=64)
def _tables(plan: Plan) -> dict[str, Tensor]:
    """The plan's groups as one table, row by row; and their masks behind each other."""
    blocks = plan.layout.blocks
    counts, mask_at, mask_row = torch.zeros(blocks, dtype=torch.int64), torch.full((blocks,), -1), torch.zeros(blocks)
    for group in plan.groups:
        counts[group.rows] = group.columns.shape[1]
    start = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    columns, masks, size = torch.empty(int(start[-1]), dtype=torch.int64), [], 0
    for group in plan.groups:
        columns[start[group.rows][:, None] + torch.arange(group.columns.shape[1])] = group.columns
        if group.mask is not None:
            each, queries, keys = group.mask.shape
            own = torch.arange(len(group.rows)) * (queries * keys) * (each > 1)
            mask_at[group.rows], mask_row[group.rows] = size + own, keys * (queries > 1)
            masks.append(group.mask.flatten())
            size += group.mask.numel()
    tables = {"start": start, "columns": columns, "mask_at": mask_at, "mask_row": mask_row.long()}
    tables["masks"] = torch.cat(masks) if masks else torch.zeros(0, dtype=torch.bool)
    return tables if plan.layout.in_order else {**tables, "index": plan.index.contiguous()}
