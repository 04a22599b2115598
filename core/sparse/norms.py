"""A residual addition and a layer norm in C++ (cpp/norms.h), in one pass over memory where torch's operators take four.

They serve under autocast to bfloat16: sums stay in single precision, and a norm comes in the dtype that is needed next.
"""

import ctypes
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..private_torch import has_hooks
from . import native

FEW = 2**16  # numbers, for which torch's operators take no longer than the call does
FEW_FOR_ONE_THREAD = 2**18
UNIT = 16  # features of a vector
CHUNKS = 64  # of rows, whose gradients of the weights are summed one after the other
PLAIN = (Tensor, nn.Parameter)  # in place of a weight that is cut in shards, say


class _Norms(ctypes.Structure):
    _fields_ = [
        *(
            (name, ctypes.c_void_p)
            for name in ("x", "branch", "sum", "out", "weight", "bias", "moments")
            + ("grad", "grad_sum", "dx", "dbranch", "dweights")
        ),
        *((name, ctypes.c_int64) for name in ("rows", "features", "chunks", "wide", "threads")),
        ("eps", ctypes.c_double),
    ]


def serves(x: Tensor, branch: Tensor | None, norm: nn.Module | None = None) -> bool:
    """Whether the C++ can add a branch to x, and norm the sum if there is a norm."""
    if not torch.is_autocast_enabled("cpu") or torch.get_autocast_dtype("cpu") != torch.bfloat16:
        return False
    if not native.is_plain(x) or x.dtype != torch.float32 or x.numel() < FEW or x.shape[-1] % UNIT:
        return False
    if branch is not None and not (native.is_plain(branch) and branch.dtype == torch.bfloat16):
        return False
    if not x.is_contiguous() or not (branch is None or (branch.shape == x.shape and branch.is_contiguous())):
        return False
    return (norm is None or _serves_norm(norm, x.shape[-1])) and hasattr(native.kernel(), "norm_bf16")


def _serves_norm(norm: nn.Module, features: int) -> bool:
    if type(norm) is not nn.LayerNorm or norm.normalized_shape != (features,) or has_hooks(norm):
        return False
    weights = [t for t in (norm.weight, norm.bias) if t is not None]
    return all(type(t) in PLAIN and t.dtype == torch.float32 and t.is_contiguous() and t.is_cpu for t in weights)


class Added(torch.autograd.Function):
    """x + branch, of what `serves`."""

    @staticmethod
    def forward(ctx: Any, x: Float[Tensor, "*b d"], branch: Float[Tensor, "*b d"]) -> Float[Tensor, "*b d"]:
        out = torch.empty_like(x)
        _run("norm", x, branch=branch, sum=out)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        return grads[0], grads[0].to(torch.bfloat16)


class AddedAndNormed(torch.autograd.Function):
    """x + branch (x if there is no branch), of what `serves`, and its layer norm in this dtype."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Float[Tensor, "*b d"],
        branch: Float[Tensor, "*b d"] | None,
        weight: Float[Tensor, "d"] | None,
        bias: Float[Tensor, "d"] | None,
        eps: float,
        dtype: torch.dtype,
    ) -> tuple[Float[Tensor, "*b d"], Float[Tensor, "*b d"]]:
        out = torch.empty_like(x, dtype=dtype)
        total = x if branch is None else torch.empty_like(x)
        moments = x.new_empty(x.numel() // x.shape[-1], 2)
        _run("norm", x, branch=branch, sum=total, out=out, weight=weight, bias=bias, moments=moments, eps=eps)
        ctx.save_for_backward(total, weight, bias, moments)
        ctx.eps, ctx.branched = eps, branch is not None
        ctx.set_materialize_grads(False)
        return total, out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        total, weight, bias, moments = ctx.saved_tensors
        grad_sum, grad = grads
        if grad is None:  # what was normed is not used
            dx, dweight, dbias = grad_sum, None, None
        elif torch.is_grad_enabled() or not all(g is None or native.is_plain(g) for g in grads):
            dx, dweight, dbias = norm_gradients(grad, total, weight, ctx.eps)
            dx = dx if grad_sum is None else dx + grad_sum
        else:
            grad, grad_sum = grad.contiguous(), None if grad_sum is None else grad_sum.contiguous()
            dx, dbranch = (
                torch.empty_like(total),
                torch.empty_like(total, dtype=torch.bfloat16) if ctx.branched else None,
            )
            chunks = min(CHUNKS, len(moments))
            dweights = total.new_empty(chunks, 2, total.shape[-1])
            _run(
                "norm_backward", total, sum=total, weight=weight, moments=moments, grad=grad, grad_sum=grad_sum, dx=dx,
                dbranch=dbranch, dweights=dweights, chunks=chunks,
            )  # fmt: skip
            dweight, dbias = dweights.sum(dim=0)
            return dx, dbranch, None if weight is None else dweight, None if bias is None else dbias, None, None
        dbranch = dx.to(torch.bfloat16) if ctx.branched and dx is not None else None
        return dx, dbranch, None if weight is None else dweight, None if bias is None else dbias, None, None


def norm_gradients(
    grad: Float[Tensor, "*b d"], x: Float[Tensor, "*b d"], weight: Float[Tensor, "d"] | None, eps: float
) -> tuple[Float[Tensor, "*b d"], Float[Tensor, "d"], Float[Tensor, "d"]]:
    """Gradients of a layer norm's input, weight and bias by torch's operators, which have all derivatives."""
    far, grad = x - x.mean(dim=-1, keepdim=True), grad.to(x.dtype)
    inverse = (far.square().mean(dim=-1, keepdim=True) + eps).rsqrt()
    normed = far * inverse
    weighted = grad if weight is None else grad * weight
    slope = (weighted * normed).mean(dim=-1, keepdim=True)
    dx = (weighted - weighted.mean(dim=-1, keepdim=True) - normed * slope) * inverse
    rows = tuple(range(x.ndim - 1))
    return dx, (grad * normed).sum(dim=rows), grad.sum(dim=rows)


def _run(name: str, x: Tensor, chunks: int = 1, eps: float = 0.0, **tensors: Tensor | None) -> None:
    features, wide = x.shape[-1], tensors.get("out", tensors.get("grad"))
    arguments = _Norms(
        x=x.data_ptr(),
        rows=x.numel() // features,
        features=features,
        chunks=chunks,
        wide=wide is not None and wide.dtype == torch.float32,
        threads=1 if x.numel() < FEW_FOR_ONE_THREAD else torch.get_num_threads(),
        eps=eps,
        **{key: None if t is None else t.data_ptr() for key, t in tensors.items()},
    )
    getattr(native.kernel(), f"{name}_bf16")(ctypes.byref(arguments))
