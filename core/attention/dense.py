"""Dense attention by torch's fused kernels, with what they need to keep the mask contract."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ..private_torch import flash_for_cpu, flash_for_cpu_backward, in_transform, unfused_attention
from .call import Call
from .derivatives import special_derivative

# torch's half-precision backward on CPUs is slower than the fp32 one below about this length (14 against 9 ms at 197
# tokens, 25 against 5 at 37), and never more exact.
SHORT = 320


def attend_dense(call: Call) -> Float[Tensor, "b h n e"]:
    """Attention of all pairs under the mask contract."""
    allowed, bias = call.allowed, call.relation.pair_bias
    if bias is not None:
        finite = bias > -torch.inf
        bias = _as(call.q.dtype, bias) if allowed is None else _as(call.q.dtype, bias).masked_fill(~allowed, -torch.inf)
        allowed = finite if allowed is None else allowed & finite
    if allowed is None:
        return _fused(call, (call.q, call.k, call.v), None)

    some_query = allowed.any(dim=-2, keepdim=True).transpose(-2, -1)  # "#b #h #m 1": keys that some query may attend to
    some_key = allowed.any(dim=-1, keepdim=True)  # "#b #h #n 1": queries that may attend to some key
    q, k, v = call.q.where(some_key, 0), call.k.where(some_query, 0), call.v.where(some_query, 0)
    not_finite = None
    if allowed.shape[-2] > 1:
        # A key can be forbidden to some queries only: its NaN may reach the others, and nobody else.
        bad_key = ~(k.isfinite().all(dim=-1) & v.isfinite().all(dim=-1))
        not_finite = (allowed & bad_key[:, :, None]).any(dim=-1, keepdim=True)
        k, v = k.where(k.isfinite(), 0), v.where(v.isfinite(), 0)
    # A row of -inf alone has no softmax: such a query attends to everything, and its output is set to 0.
    mask = allowed | ~some_key if bias is None else bias.masked_fill(~some_key, 0)
    out = _fused(call, (q, k, v), mask)
    if not_finite is not None:
        out = out + torch.where(not_finite, torch.nan, 0.0).to(out.dtype)
    return out.where(some_key, 0)


def _as(dtype: torch.dtype, bias: Tensor) -> Tensor:
    """A bias in another precision; what is finite remains so, since only -inf forbids a pair."""
    if torch.finfo(dtype).max >= torch.finfo(bias.dtype).max:
        return bias.to(dtype)
    most = torch.finfo(dtype).max
    return bias.clamp(-most, most).where(~bias.isinf(), bias).to(dtype)


def _fused(call: Call, tensors: tuple[Tensor, Tensor, Tensor], mask: Tensor | None) -> Tensor:
    """Attention by torch's kernels with the dropout and the scale of a call; mask: boolean, or added to the logits."""
    (q, k, v), dropout, scale = tensors, call.dropout, call.scale
    # By vmap; then a mask does not say whether it needs a gradient, which torch's kernels do not have.
    mapped = not torch.compiler.is_compiling() and in_transform()
    if special_derivative() or (mapped and mask is not None and mask.dtype != torch.bool):
        return unfused_attention(q, k, v, _added(mask, q), dropout, scale=scale)[0]
    half_on_cpu = not mapped and q.device.type == "cpu" and q.dtype in (torch.bfloat16, torch.float16)
    learned_mask = mask is not None and mask.requires_grad
    plain = not dropout and not learned_mask and q.shape[-1] == v.shape[-1] and 0 not in (*q.shape, *k.shape)
    if half_on_cpu and plain and torch.is_grad_enabled() and k.shape[2] <= SHORT:
        return ShortHalf.apply(q, k, v, _added(mask, q), call.factor)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout, scale=scale)


def _added(mask: Tensor | None, q: Tensor) -> Tensor | None:
    """The numbers that are added to the logits for a mask."""
    if mask is None or mask.dtype != torch.bool:
        return mask
    return torch.zeros_like(mask, dtype=q.dtype).masked_fill(~mask, -torch.inf)


class ShortHalf(torch.autograd.Function):
    """Half-precision attention on a CPU: torch's own forward, and its fp32 backward."""

    @staticmethod
    def forward(ctx, q, k, v, mask, scale):
        # The kernel takes the features for contiguous; scaled_dot_product_attention makes sure of it.
        q, k, v = (t if t.stride(-1) == 1 else t.contiguous() for t in (q, k, v))
        out, lse = flash_for_cpu(q, k, v, 0.0, False, attn_mask=mask, scale=scale)
        ctx.save_for_backward(q, k, v, mask, out, lse)
        ctx.scale = scale
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        q, k, v, mask, out, lse = ctx.saved_tensors
        full = [tensor.float() for tensor in (grad, q, k, v, out)]
        mask = None if mask is None else mask.float()
        grads = flash_for_cpu_backward(*full, lse, 0.0, False, attn_mask=mask, scale=ctx.scale)
        return *(g.to(q.dtype) for g in grads), None, None
