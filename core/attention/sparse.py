"""Sparse attention as one differentiable operator, which torch.compile keeps whole; a kernel does the work.

Only inputs, output and the rows' log-sum-exp are kept for the backward pass (Dao et al. 2022, section 3.1), so memory
grows with the tokens.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..private_torch import in_forward_mode
from ..sparse import native
from ..sparse.blockwise import Walk
from ..sparse.layout import Grid
from ..sparse.patterns import Pattern
from ..sparse.plan import Plan, make_plan
from .arguments import check_arguments

KERNELS = ("blockwise", "native")


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
    with torch.autocast(q.device.type, enabled=False):
        plan = _plan(q, k, v, mask, bias, pattern, prefix, rows, columns, dropout, scale, kernel)
        drawn = 0 if seed is None else int(seed)
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
    _check(q, k, v, mask, bias, pattern, prefix, rows, columns, dropout, scale, kernel)
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
    with torch.autocast(q.device.type, enabled=False):
        plan = _plan(q, k, v, mask, bias, pattern, prefix, rows, columns, dropout, scale, kernel)
        _check_backward(grad, q, v, bias, out, lse, learns)
        drawn = 0 if seed is None else int(seed)
        if kernel == "native":
            found = native.backward(grad, q, k, v, mask, out, lse, plan, native.Options(scale, dropout, drawn))
            if found is not None:
                return *found, q.new_empty(0)
        clean = not (torch.isfinite(k.sum()) and torch.isfinite(v.sum()))
        return Walk(q, k, v, mask, bias, plan, dropout, scale, drawn, clean).backward(grad, out, lse, learns)


@_backward.register_fake
def _(grad, q, k, v, mask, bias, seed, out, lse, pattern, prefix, rows, columns, dropout, scale, kernel, learns):
    _check(q, k, v, mask, bias, pattern, prefix, rows, columns, dropout, scale, kernel)
    _check_backward(grad, q, v, bias, out, lse, learns)
    dbias = bias.new_empty(bias.shape) if learns else q.new_empty(0)
    return *(t.new_empty(t.shape) for t in (q, k, v)), dbias


def _no_second_derivative(ctx, *grads):
    raise RuntimeError("Sparse attention has no second derivative: use attention_backend('reference') for it.")


_forward.register_autograd(_differentiate, setup_context=_setup)
_backward.register_autograd(_no_second_derivative)


def _plan(q, k, v, mask, bias, pattern, prefix, rows, columns, dropout, scale, kernel) -> Plan:
    _check(q, k, v, mask, bias, pattern, prefix, rows, columns, dropout, scale, kernel)
    return make_plan(Pattern.parse(pattern), q.shape[2], prefix, _grid(rows, columns))


def _check(q, k, v, mask, bias, pattern, prefix, rows, columns, dropout, scale, kernel) -> None:
    """The operators can be called past `attend`, which has checked all this."""
    if in_forward_mode():
        raise RuntimeError("Sparse attention has no forward-mode derivative: use attention_backend('dense') for it.")
    check_arguments(q, k, v, mask, bias, Pattern.parse(pattern), prefix, _grid(rows, columns), dropout, scale)
    if q.shape[2] != k.shape[2]:
        raise ValueError(f"Sparse attention: {q.shape[2]} queries meet {k.shape[2]} keys; there must be as many.")
    if mask is not None and mask.ndim != 2:
        raise ValueError(f'Sparse attention: mask must have the axes "b n", not {mask.ndim} axes.')
    if kernel not in KERNELS:
        raise ValueError(f"Sparse attention: kernel must be one of {', '.join(KERNELS)}, not {kernel!r}.")
    if kernel == "native" and bias is not None:
        raise ValueError("Sparse attention: a bias needs the kernel 'blockwise'.")


def _check_backward(grad, q, v, bias, out, lse, learns) -> None:
    like_v, wide = (*q.shape[:3], v.shape[3]), torch.promote_types(q.dtype, torch.float32)
    given = (("grad", grad, like_v, q.dtype), ("out", out, like_v, q.dtype), ("lse", lse, q.shape[:3], wide))
    for name, t, shape, dtype in given:
        if t.shape != shape or t.dtype != dtype or t.device != q.device:
            is_one = f"{tuple(t.shape)} {t.dtype} on {t.device}"
            raise ValueError(f"Sparse attention: {name} must be {tuple(shape)} {dtype} on {q.device}, not {is_one}.")
    if learns and bias is None:
        raise ValueError("Sparse attention: there is no bias to learn.")


def _grid(rows: int, columns: int) -> Grid | None:
    return (rows, columns) if rows or columns else None
