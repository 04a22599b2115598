"""Rotary positions in C++ (cpp/turns.h): one pass over memory, where torch's operators take six.

In single precision the results are those of the operators to the bit, in bfloat16 those of the forward pass; its
gradients are rounded once, where the operators round them twice.
"""

import ctypes
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from . import native
from .call import empty_by_tokens
from .native import DTYPES, MOST, View

FEW = 2**16  # numbers, for which torch's operators take no longer than the call does
FEW_FOR_ONE_THREAD = 2**18


class _Turns(ctypes.Structure):
    _fields_ = [
        ("x", View),
        ("out", View),
        *((name, ctypes.c_void_p) for name in ("cos", "sin")),
        *(
            (name, ctypes.c_int64)
            for name in ("table_head", "table_token", "batch", "heads", "length", "c", "back", "threads")
        ),
    ]


def serves(x: Tensor, cos: Tensor, sin: Tensor) -> bool:
    """Whether the C++ can turn "b h n c" by tables "n c" or "#h n c"."""
    if not native.is_plain(x) or x.numel() < FEW:
        return False
    _, h, n, c = x.shape
    for table in (cos, sin):
        fits = table.shape == cos.shape in ((n, c), (1, n, c), (h, n, c)) and table.is_contiguous()
        if not fits or table.dtype != torch.float32 or table.device != x.device or table.requires_grad:
            return False
    *_, token, feature = x.stride()
    if x.dtype not in (torch.float32, torch.bfloat16) or feature != 1 or not c <= token <= MOST:
        return False
    return hasattr(native.kernel(), f"turn_{DTYPES[x.dtype]}")


class Turned(torch.autograd.Function):
    """The features "b h n c" turned by a table that `serves`; back: the other way round."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Float[Tensor, "b h n c"],
        cos: Float[Tensor, "*h n c"],
        sin: Float[Tensor, "*h n c"],
        back: bool,
    ) -> Float[Tensor, "b h n c"]:
        ctx.save_for_backward(cos, sin)
        ctx.back = back
        out = empty_by_tokens(x, *x.shape)
        b, h, n, c = x.shape
        arguments = _Turns(
            x=View.of(x),
            out=View.of(out),
            cos=cos.data_ptr(),
            sin=sin.data_ptr(),
            table_head=n * c if cos.ndim == 3 and cos.shape[0] > 1 else 0,
            table_token=c,
            batch=b,
            heads=h,
            length=n,
            c=c,
            back=back,
            threads=1 if x.numel() < FEW_FOR_ONE_THREAD else torch.get_num_threads(),
        )
        getattr(native.kernel(), f"turn_{DTYPES[x.dtype]}")(ctypes.byref(arguments))
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        (grad,), (cos, sin) = grads, ctx.saved_tensors
        if not serves(grad, cos, sin):
            return turned_by_operators(grad, cos, sin, not ctx.back), None, None, None
        turned = Turned.apply(grad, cos, sin, not ctx.back)
        assert isinstance(turned, Tensor)
        return turned, None, None, None


def turned_by_operators(
    x: Float[Tensor, "*b h n c"], cos: Float[Tensor, "*h n c"], sin: Float[Tensor, "*h n c"], back: bool = False
) -> Float[Tensor, "*b h n c"]:
    first, second = (x * sin if back else x).chunk(2, dim=-1)
    if back:
        return (x * cos + torch.cat([second, -first], dim=-1)).to(x.dtype)
    return (x * cos + torch.cat([-second, first], dim=-1) * sin).to(x.dtype)
