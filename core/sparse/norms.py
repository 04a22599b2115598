"""A residual addition and a layer norm in C++ (cpp/norms.h): one pass over memory, where torch's operators take four.

They serve under autocast to bfloat16. The sum stays in single precision; its norm is returned in the dtype that the
next operation needs.
"""

import ctypes
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..private_torch import has_hooks
from . import native

FEW = 2**16  # numbers; with fewer, torch's operators are as fast
FEW_FOR_ONE_THREAD = 2**18
UNIT = 16  # features of a vector
CHUNKS = 64  # of rows, whose gradients of the weights are summed one after the other


class _Norms(ctypes.Structure):
    _fields_ = [
        *(
            (name, ctypes.c_void_p)
            for name in ("x", "branch", "sum", "wide", "narrow", "weight", "bias", "moments")
            + ("grad_sum", "grad_wide", "grad_narrow", "dx", "dbranch", "dweights")
        ),
        *((name, ctypes.c_int64) for name in ("rows", "features", "chunks", "threads")),
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
    shape = (features,)
    if type(norm) is not nn.LayerNorm or "forward" in vars(norm) or has_hooks(norm) or norm.normalized_shape != shape:
        return False
    weights = [t for t in (norm.weight, norm.bias) if t is not None]
    return all(
        t.shape == shape and t.dtype == torch.float32 and t.is_contiguous() and native.is_plain(t) for t in weights
    )


class Added(torch.autograd.Function):
    """x + branch; only for tensors that `serves` accepts."""

    @staticmethod
    def forward(ctx: Any, x: Float[Tensor, "*b d"], branch: Float[Tensor, "*b d"]) -> Float[Tensor, "*b d"]:
        out = torch.empty_like(x)
        _run("norm", x, {"branch": branch, "sum": out})
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        return grads[0], grads[0].to(torch.bfloat16)


class AddedAndNormed(torch.autograd.Function):
    """x + branch (x if there is no branch), and its layer norm in single precision and in bfloat16, each if it is
    wanted; only for tensors that `serves` accepts."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Float[Tensor, "*b d"],
        branch: Float[Tensor, "*b d"] | None,
        weight: Float[Tensor, "d"] | None,
        bias: Float[Tensor, "d"] | None,
        eps: float,
        wide: bool,
        narrow: bool,
    ) -> tuple[Float[Tensor, "*b d"], Float[Tensor, "*b d"] | None, Float[Tensor, "*b d"] | None]:
        total = x if branch is None else torch.empty_like(x)
        moments = x.new_empty(x.numel() // x.shape[-1], 2)
        outs = {
            "wide": torch.empty_like(x) if wide else None,
            "narrow": torch.empty_like(x, dtype=torch.bfloat16) if narrow else None,
        }
        given = {"branch": branch, "weight": weight, "bias": bias}
        _run("norm", x, {**given, "sum": total, "moments": moments, **outs}, eps=eps)
        ctx.save_for_backward(total, weight, bias, moments)
        ctx.eps, ctx.branched = eps, branch is not None
        ctx.set_materialize_grads(False)
        if not any(ctx.needs_input_grad[:2]):  # only weights of the norm learn
            ctx.mark_non_differentiable(total)
        return total, *outs.values()  # pyright: ignore[reportReturnType]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        total, weight, bias, moments = ctx.saved_tensors
        total, moments = total.contiguous(), moments.contiguous()
        dx, dbranch, dweight, dbias = grads[0], None, None, None
        if grads[1] is None and grads[2] is None:
            pass  # what was normed is not used
        elif torch.is_grad_enabled() or not all(grad is None or native.is_plain(grad) for grad in grads):
            dx, dweight, dbias = _gradients(grads, total, weight, ctx.eps)
        else:
            names = ("grad_sum", "grad_wide", "grad_narrow")
            given = {name: grad if grad is None else grad.contiguous() for name, grad in zip(names, grads, strict=True)}
            given |= {"sum": total, "weight": weight, "moments": moments}
            dx = torch.empty_like(total)
            dbranch = torch.empty_like(total, dtype=torch.bfloat16) if ctx.branched else None
            chunks = min(CHUNKS, len(moments))
            sums = total.new_empty(chunks, 2, total.shape[-1])
            _run("norm_backward", total, {**given, "dx": dx, "dbranch": dbranch, "dweights": sums}, chunks)
            dweight, dbias = sums[:, 0].sum(dim=0), sums[:, 1].sum(dim=0)
        if ctx.branched and dbranch is None and dx is not None:
            dbranch = dx.to(torch.bfloat16)
        return dx, dbranch, None if weight is None else dweight, None if bias is None else dbias, None, None, None


def _gradients(
    grads: Sequence[Tensor | None], total: Float[Tensor, "*b d"], weight: Float[Tensor, "d"] | None, eps: float
) -> tuple[Float[Tensor, "*b d"], Float[Tensor, "d"], Float[Tensor, "d"]]:
    """Gradients of the sum, the weight and the bias by torch's operators."""
    of_sum, *of_norm = grads
    of_norm = torch.stack([grad.float() for grad in of_norm if grad is not None]).sum(dim=0)
    dx, dweight, dbias = norm_gradients(of_norm, total, weight, eps)
    return dx if of_sum is None else dx + of_sum, dweight, dbias


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


def _run(name: str, x: Tensor, tensors: Mapping[str, Tensor | None], chunks: int = 1, eps: float = 0.0) -> None:
    features = x.shape[-1]
    arguments = _Norms(
        x=x.data_ptr(),
        rows=x.numel() // features,
        features=features,
        chunks=chunks,
        threads=1 if x.numel() < FEW_FOR_ONE_THREAD else torch.get_num_threads(),
        eps=eps,
        **{key: None if t is None else t.data_ptr() for key, t in tensors.items()},
    )
    getattr(native.kernel(), f"{name}_bf16")(ctypes.byref(arguments))
