"""Attention in a few plain lines: the reference that every backend is compared with. It is slow and takes memory."""

import torch
from einops import einsum
from jaxtyping import Bool, Float
from torch import Tensor

from .call import make_call


def attention_weights(
    q: Float[Tensor, "b h n c"],
    k: Float[Tensor, "b h m c"],
    mask: Bool[Tensor, "#b #h #n #m"] | None = None,
    bias: Float[Tensor, "#b #h #n #m"] | None = None,
    scale: float | None = None,
) -> Float[Tensor, "b h n m"]:
    """softmax(q k^T * scale + bias) over the allowed keys; a query with no allowed key has weight 0 everywhere."""
    _check(q, k, k, mask, bias, scale)
    (q, bad_q), (k, bad_k) = _finite(q), _finite(k)
    logits = einsum(q, k, "b h n c, b h m c -> b h n m") * (q.shape[-1] ** -0.5 if scale is None else scale)
    logits = logits + bad_q[..., :, None] + bad_k[..., None, :]
    logits = logits if bias is None else logits + bias.to(logits.dtype)
    forbidden = logits == -torch.inf if mask is None else (logits == -torch.inf) | ~mask
    # The lowest finite number, not -inf: a row of -inf alone would have NaN gradients.
    weights = logits.masked_fill(forbidden, torch.finfo(logits.dtype).min).softmax(dim=-1)
    return weights.masked_fill(forbidden, 0)


def attend_reference(
    q: Float[Tensor, "b h n c"],
    k: Float[Tensor, "b h m c"],
    v: Float[Tensor, "b h m e"],
    mask: Bool[Tensor, "#b #h #n #m"] | None = None,
    bias: Float[Tensor, "#b #h #n #m"] | None = None,
    scale: float | None = None,
) -> Float[Tensor, "b h n e"]:
    """Scaled dot-product attention (Vaswani et al. 2017, section 3.2.1) under the mask contract."""
    _check(q, k, v, mask, bias, scale)
    dtype = torch.promote_types(v.dtype, torch.float32)  # a reference does not round on the way
    weights = attention_weights(q.to(dtype), k.to(dtype), mask, bias, scale)
    values = v.to(dtype)[:, :, None].expand(*weights.shape, v.shape[-1])
    # 0 * NaN is NaN: what is masked is left out of the sum, not multiplied by its weight of 0.
    values = values if mask is None else values.masked_fill(~mask[..., None], 0)
    return einsum(weights, values, "b h n m, b h n m e -> b h n e").to(v.dtype)


def _check(q, k, v, mask, bias, scale) -> None:
    make_call(q, k, v, mask=mask, bias=bias, scale=scale)
    if mask is not None and mask.ndim != 4:
        raise ValueError(f'Attention: the reference takes a mask of the axes "b h n m", not of {mask.ndim} axes.')


def _finite(x: Float[Tensor, "b h n c"]) -> tuple[Float[Tensor, "b h n c"], Float[Tensor, "b h n"]]:
    """x with 0 for NaN and inf, and NaN for each vector that had any: 0 * NaN would leak into gradients."""
    finite = x.isfinite()
    return x.where(finite, 0), torch.zeros_like(x[..., 0]).masked_fill(~finite.all(dim=-1), torch.nan)
