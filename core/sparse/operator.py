"""Sparse attention as one differentiable operator, which torch.compile keeps whole; a kernel does the work.

Only inputs, output and the rows' log-sum-exp are kept for the backward pass (Dao et al. 2022, section 3.1), so memory
grows with the tokens.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from . import native
from .blockwise import Walk
from .layout import Grid
from .patterns import Pattern
from .plan import Plan, make_plan


def attend_sparse(
    q: Float[Tensor, "b h n c"],
    k: Float[Tensor, "b h n c"],
    v: Float[Tensor, "b h n e"],
    pattern: Pattern,
    prefix: int = 0,
    grid: Grid | None = None,
    mask: Bool[Tensor, "#b n"] | None = None,
    bias: Float[Tensor, "#b #h #n #n"] | None = None,
    dropout: float = 0.0,
    scale: float | None = None,
    kernel: str = "blockwise",
) -> Float[Tensor, "b h n e"]:
    """Attention by a pattern under the mask contract; mask: which keys are real; kernel: blockwise or native."""
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    seed = torch.randint(2**31, ()) if dropout else None
    rows, columns = grid or (0, 0)
    out, _ = _forward(q, k, v, mask, bias, seed, str(pattern), prefix, rows, columns, dropout, scale, kernel)
    return out


@torch.library.custom_op("trivium::sparse_attention", mutates_args=())
def _forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    bias: Tensor | None,
    seed: Tensor | None,
    pattern: str,
    prefix: int,
    rows: int,
    columns: int,
    dropout: float,
    scale: float,
    kernel: str,
) -> tuple[Tensor, Tensor]:
    """Output, and the log-sum-exp of each query's logits, "b h n"."""
    plan, drawn = _plan(pattern, q.shape[2], prefix, rows, columns), 0 if seed is None else int(seed)
    if kernel == "native":
        found = native.forward(q, k, v, mask, plan, native.Options(scale, dropout, drawn))
        if found is not None:
            return found
    out, lse = Walk(q, k, v, mask, bias, plan, dropout, scale, drawn).forward()
    if not torch.isfinite(out.sum()):  # a forbidden NaN may have come in through a weight of 0
        out, lse = Walk(q, k, v, mask, bias, plan, dropout, scale, drawn, clean=True).forward()
    return out, lse


@_forward.register_fake
def _(q, k, v, mask, bias, seed, pattern, prefix, rows, columns, dropout, scale, kernel):
    dtype = torch.promote_types(q.dtype, torch.float32)
    return q.new_empty(*q.shape[:3], v.shape[-1]), q.new_empty(q.shape[:3], dtype=dtype)


def _setup(ctx, inputs, output):
    q, k, v, mask, bias, seed, *ctx.settings = inputs
    ctx.save_for_backward(q, k, v, mask, bias, seed, *output)


def _differentiate(ctx, grad, _):
    q, k, v, mask, bias, seed, out, lse = ctx.saved_tensors
    learns = bias is not None and ctx.needs_input_grad[4]
    dq, dk, dv, dbias = _backward(grad, q, k, v, mask, bias, seed, out, lse, *ctx.settings, learns)
    return dq, dk, dv, None, dbias if learns else None, *([None] * 8)


@torch.library.custom_op("trivium::sparse_attention_backward", mutates_args=())
def _backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    bias: Tensor | None,
    seed: Tensor | None,
    out: Tensor,
    lse: Tensor,
    pattern: str,
    prefix: int,
    rows: int,
    columns: int,
    dropout: float,
    scale: float,
    kernel: str,
    learns: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    plan, drawn = _plan(pattern, q.shape[2], prefix, rows, columns), 0 if seed is None else int(seed)
    if kernel == "native":
        found = native.backward(grad, q, k, v, mask, out, lse, plan, native.Options(scale, dropout, drawn))
        if found is not None:
            return *found, q.new_empty(0)
    clean = not (torch.isfinite(k.sum()) and torch.isfinite(v.sum()))
    return Walk(q, k, v, mask, bias, plan, dropout, scale, drawn, clean).backward(grad, out, lse, learns)


@_backward.register_fake
def _(grad, q, k, v, mask, bias, seed, out, lse, pattern, prefix, rows, columns, dropout, scale, kernel, learns):
    dbias = bias.new_empty(bias.shape) if learns else q.new_empty(0)
    return *(t.new_empty(t.shape) for t in (q, k, v)), dbias


def _no_second_derivative(ctx, *grads):
    raise RuntimeError("Sparse attention has no second derivative: use attention_backend('reference') for it.")


_forward.register_autograd(_differentiate, setup_context=_setup)
_backward.register_autograd(_no_second_derivative)


def _plan(pattern: str, length: int, prefix: int, rows: int, columns: int) -> Plan:
    return make_plan(Pattern.parse(pattern), length, prefix, (rows, columns) if rows else None)
