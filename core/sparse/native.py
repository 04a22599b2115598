"""Attention as C++ for CPUs (cpp/attention.cpp), compiled when the package is installed, or else when first needed.

Where there is no compiler either time, `why_not` says so, and torch's kernels and the one in plain torch serve
(blockwise.py). The C++ checks nothing, so everything that it is given is checked here.
"""

import ctypes
import math
from functools import cache

import torch
from torch import Tensor

from ..private_torch import (
    constant_in_graphs,
    in_dispatch_mode,
    in_forward_mode,
    in_transform,
    is_legacy_batch,
    is_tracing,
)
from . import build
from .call import KernelCall, empty_by_tokens
from .compiler import BuildError, read_kernel
from .native_plans import Rows, rows_of
from .plan import PackedPlan, Plan

MOST_PARTS = 4  # sums of dk and dv side by side, where threads outnumber heads
FEW = 2**22  # multiplications, which one thread computes in less than 0.1 ms
MOST = 2**30  # tokens, features, and elements between two tokens
DTYPES = {torch.float32: "float", torch.float64: "double", torch.bfloat16: "bf16"}  # as the C++ functions name them
HALVES = (torch.bfloat16, torch.float16)  # computed in float where the kernel has no functions for them
DONE, NOT_FINITE, NO_MEMORY = range(3)  # the outcomes of a call, as in cpp/call.h


class View(ctypes.Structure):
    """A tensor, as in cpp/call.h."""

    _fields_ = [("data", ctypes.c_void_p), *((name, ctypes.c_int64) for name in ("part", "batch", "head", "token"))]

    @classmethod
    def of(cls, t: Tensor) -> "View":
        """Of "part b h n c", or "b h n c" for all parts."""
        *strides, token, feature = t.stride()
        if feature != 1 or not t.shape[-1] <= token <= MOST:
            raise ValueError(f"The native kernel cannot read a tensor with strides {t.stride()}.")
        return cls(t.data_ptr(), *strides, token) if len(strides) == 3 else cls(t.data_ptr(), 0, *strides, token)


class _Pairs(ctypes.Structure):
    _fields_ = [("data", ctypes.c_void_p), *((name, ctypes.c_int64) for name in ("batch", "head", "query", "key"))]

    @classmethod
    def of(cls, t: Tensor | None) -> "_Pairs":
        """Of "b h n m"."""
        return cls() if t is None else cls(t.data_ptr(), *t.stride())


class _Call(ctypes.Structure):
    _fields_ = [
        ("scale", ctypes.c_double),
        ("dropout_scale", ctypes.c_double),
        *(
            (name, ctypes.c_int64)
            for name in ("dropped", "seed", "threads", "parts", "plan_count", "count", "together", "fresh")
        ),
        *((name, ctypes.c_int64) for name in ("heads", "length", "key_length", "c", "e")),
        *((name, ctypes.c_void_p) for name in ("plans", "sequences", "key_mask")),
        *((name, View) for name in ("q", "k", "v", "out", "grad", "dq", "dk", "dv")),
        *((name, _Pairs) for name in ("bias", "dbias")),
        ("lse", ctypes.c_void_p),
        ("outcome", ctypes.c_int64),
    ]


@constant_in_graphs
def why_not() -> str:
    """Why there is no compiled kernel on this machine; empty if there is one."""
    found = kernel()
    return found if isinstance(found, str) else ""


@constant_in_graphs
def origin() -> str:
    """When the kernel was compiled, and for what; empty if there is none."""
    if why_not():
        return ""
    installed = _installed()
    made = f"compiled at install, for {installed[1]}" if installed else "compiled at first use, for this processor"
    return f"{made}, {'with' if computes(torch.bfloat16) else 'without'} bfloat16 arithmetic"


def load_library(flags: tuple[str, ...] = ()) -> ctypes.CDLL:
    """The kernel compiled for this processor; flags: the compiler's, in addition to those of compiler.py."""
    code, headers = read_kernel()
    return build.load(code, flags, headers)


@cache
def _installed() -> tuple[ctypes.CDLL, str] | None:
    """The kernel that was compiled when the package was installed, and for what, if it serves here."""
    return build.load_installed(*read_kernel())


@cache
def kernel() -> ctypes.CDLL | str:
    """The kernel, or why there is none."""
    try:
        installed = _installed()
        return installed[0] if installed else load_library()
    except (BuildError, OSError) as error:
        return f"the C++ kernel can't be compiled here: {error}"


def computes(dtype: torch.dtype) -> bool:
    """Whether there is a kernel that computes with numbers of this dtype as they are."""
    return dtype in DTYPES and hasattr(kernel(), f"forward_{DTYPES[dtype]}")


@constant_in_graphs
def slower_than_torch(dtype: torch.dtype) -> str:
    """Why torch's kernel for all pairs is faster in this dtype; empty if ours is."""
    if dtype in HALVES and not computes(dtype):
        return f"it computes {str(dtype).removeprefix('torch.')} in float32 here"
    if dtype == torch.bfloat16 and _has_amx():
        return "torch's kernel has matrix instructions for bfloat16 here"
    return ""


@cache
def _has_amx() -> bool:
    return torch.cpu.get_capabilities().get("amx_bf16", False)


def is_plain(t: Tensor) -> bool:
    """Whether the numbers of a tensor can be read from its memory, and no graph, transform or mode must see what is
    done with them. Subclasses, such as weights that are cut in shards, are not plain; parameters are."""
    if torch.compiler.is_compiling() or type(t) not in (Tensor, torch.nn.Parameter) or t.device.type != "cpu":
        return False
    if is_tracing() or in_dispatch_mode() or in_forward_mode() or in_transform() or is_legacy_batch(t):
        return False
    return not t.is_neg() and (t.data_ptr() != 0 or t.numel() == 0)  # no memory: zeros of autograd, or freed


def forward(call: KernelCall) -> tuple[Tensor, Tensor, bool]:
    """Output "b h n e", log-sum-exp "b h n", and whether all of the output is finite. If not, the kernel in plain torch
    must find the queries that a NaN or inf belongs to."""
    _check(call)
    dtype = call.q.dtype
    q, k, v = (_ready(t) for t in (call.q, call.k, call.v))
    out = empty_by_tokens(q, *q.shape[:3], v.shape[-1])
    lse = q.new_empty(q.shape[:3], dtype=_sum_dtype(dtype))
    rows = rows_of(call.plan, len(q))
    finite = _run("forward", call, rows, {"q": q, "out": out, "k": rows.keys(k), "v": rows.keys(v)}, lse)
    return out.to(dtype), lse, finite


def backward(
    call: KernelCall, grad: Tensor, out: Tensor, lse: Tensor, learns_bias: bool = False
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, bool]:
    """Gradients of q, k and v, and of the bias if it learns, and whether all of that of q is finite."""
    _check(call, grad=grad, out=out, lse=lse)
    dtype, threads, rows = call.q.dtype, _threads(call), rows_of(call.plan, len(call.q))
    count, heads = len(rows.sequences), call.q.shape[1]
    # Sequences that share a learned bias are computed one after the other, if that leaves enough work for all threads.
    shared = learns_bias and call.bias is not None and call.bias.shape[0] == 1 and heads * MOST_PARTS >= threads
    together = count if shared else 1
    heads *= count // together
    parts = 1 if heads % threads == 0 else max(min(-(-2 * threads // max(heads, 1)), MOST_PARTS), 1)
    q, k, v, out, grad = map(_ready, (call.q, call.k, call.v, out, grad))
    dq = empty_by_tokens(q, *q.shape)
    keys = {"k": rows.keys(k), "v": rows.keys(v)}
    sums = {f"d{name}": rows.empty_sums(parts, t, q.dtype if parts == 1 else lse.dtype) for name, t in keys.items()}
    views = {"q": q, "out": out, "grad": grad, "dq": dq, **keys, **sums}
    dbias = None
    if learns_bias:  # heads that share a bias have their gradients side by side, and they are added afterwards
        dbias = lse.new_empty(1 if shared else count, *q.shape[1:3], k.shape[2])
    finite = _run("backward", call, rows, views, lse.resolve_neg().contiguous(), parts, together, dbias)
    dk, dv = (rows.tokens(t[0] if parts == 1 else t.sum(dim=0)) for t in sums.values())
    if dbias is not None:
        assert call.bias is not None
        dbias = dbias.sum_to_size(call.bias.shape).to(call.bias.dtype)
    return dq.to(dtype), dk.to(dtype), dv.to(dtype), dbias, finite


def _run(
    name: str,
    call: KernelCall,
    rows: Rows,
    views: dict[str, Tensor],
    lse: Tensor,
    parts: int = 1,
    together: int = 1,
    dbias: Tensor | None = None,
) -> bool:
    library = kernel()
    assert isinstance(library, ctypes.CDLL)  # _check has made sure
    fresh = isinstance(call.plan, Plan) and call.plan.pattern is None and call.key_mask is None  # all of it is written
    if dbias is not None:
        library.use_large_pages(ctypes.c_void_p(dbias.data_ptr()), ctypes.c_int64(dbias.nbytes))
        dbias = (dbias if fresh else dbias.zero_()).expand(*call.q.shape[:3], -1)
    q, k = views["q"], views["k"]
    mask = rows.key_mask(call.key_mask)
    bias = None if call.bias is None else call.bias.resolve_neg().to(lse.dtype).expand(*q.shape[:3], call.k.shape[2])
    arguments = _Call(
        scale=call.scale,
        dropout_scale=1 / (1 - call.dropout) if call.dropout < 1 else 0,
        dropped=round(call.dropout * 2**32),
        seed=call.seed,
        threads=_threads(call),
        parts=parts,
        together=together,
        fresh=fresh,
        plan_count=len(rows.plans),
        count=len(rows.sequences),
        heads=q.shape[1],
        length=q.shape[2],
        key_length=k.shape[2],
        c=q.shape[3],
        e=views["out"].shape[3],
        plans=ctypes.cast(rows.plans, ctypes.c_void_p),
        sequences=rows.sequences.data_ptr(),
        key_mask=None if mask is None else mask.data_ptr(),
        lse=lse.data_ptr(),
        bias=_Pairs.of(bias),
        dbias=_Pairs.of(dbias),
        **{key: View.of(t) for key, t in views.items()},
    )
    getattr(library, f"{name}_{DTYPES[q.dtype]}")(ctypes.byref(arguments))
    if arguments.outcome == NO_MEMORY:
        raise MemoryError(f"There is not enough memory for attention with heads of {q.shape[3]} features.")
    return arguments.outcome == DONE


def _threads(call: KernelCall) -> int:
    """How many threads compute a call: to start others takes longer than a small one does."""
    (b, h, n, c), (m, e) = call.q.shape, call.v.shape[2:]
    return 1 if b * h * n * m * (c + e) <= FEW else torch.get_num_threads()


def _sum_dtype(dtype: torch.dtype) -> torch.dtype:
    """What logits, sums and gradients of keys are computed in."""
    return torch.promote_types(dtype, torch.float32)


def _check(call: KernelCall, **results: Tensor) -> None:
    """Raise a ValueError if the kernel would read or write outside of the tensors; results: of a forward pass."""
    if problem := why_not():
        raise ValueError(f"There is no native kernel: {problem}.")
    if not (0 <= call.dropout <= 1 and math.isfinite(call.scale)):
        given = f"a dropout of {call.dropout} and a scale of {call.scale}"
        raise ValueError(f"The native kernel needs a probability of dropout and a finite scale, not {given}.")
    q, v = call.q, call.v
    if q.ndim != 4 or v.ndim != 4 or not all(0 < size <= MOST for size in (*q.shape, v.shape[3])):
        raise ValueError(f"The native kernel needs q and v of 4 axes, not {tuple(q.shape)} and {tuple(v.shape)}.")
    if q.dtype not in (*DTYPES, *HALVES):
        raise ValueError(f"The native kernel computes with floating-point numbers, not {q.dtype}.")
    b, h, n, m, c = q.shape[0], q.shape[1], call.plan.length, call.plan.key_length, q.shape[3]
    if isinstance(call.plan, PackedPlan) and b != 1:
        raise ValueError(f"The native kernel takes several sequences in one row, not in {b}.")
    if isinstance(call.plan, PackedPlan) and call.bias is not None:
        raise ValueError("The native kernel takes no bias for several sequences in a row.")
    shapes = {"q": (b, h, n, c), "k": (b, h, m, c), "v": (b, h, m, v.shape[3]), "lse": (b, h, n)}
    dtypes = {"lse": _sum_dtype(q.dtype)}
    for name, t in {"q": q, "k": call.k, "v": v, **results}.items():
        _check_memory(name, t, shapes.get(name, (b, h, n, v.shape[3])), dtypes.get(name, q.dtype))
    if (bias := call.bias) is not None:
        full = (b, h, n, m)
        shape = tuple(1 if size == 1 else whole for size, whole in zip(bias.shape, full, strict=False))
        _check_memory("the bias", bias, shape if bias.ndim == 4 else full, bias.dtype)
    if (mask := call.key_mask) is not None:
        shared = mask.shape if mask.ndim == 2 else (b, m)
        _check_memory("the mask", mask, (1 if shared[0] == 1 else b, 1 if shared[1] == 1 else m), torch.bool)


def _check_memory(name: str, t: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    if t.shape != shape or t.dtype != dtype or t.device.type != "cpu" or t.layout != torch.strided:
        wanted, given = f"{shape} {dtype} cpu", f"{tuple(t.shape)} {t.dtype} {t.device} {t.layout}"
        raise ValueError(f"The native kernel needs {name} as {wanted}, not {given}.")
    last = t.storage_offset()
    for size, stride in zip(shape, t.stride(), strict=True):
        last += (size - 1) * stride
    if (last + 1) * t.element_size() > t.untyped_storage().nbytes():
        raise ValueError(f"The native kernel cannot read {name}: its memory has been freed.")


def _ready(t: Tensor) -> Tensor:
    """The tensor in a dtype that the kernel has, and with whole rows that are not too far apart."""
    t = t.resolve_neg() if computes(t.dtype) else t.float()
    *_, token, feature = t.stride()
    whole = feature == 1 and t.shape[-1] <= token <= MOST
    return t if whole else t.clone(memory_format=torch.contiguous_format)  # contiguous() may leave odd strides
