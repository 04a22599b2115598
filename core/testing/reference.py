"""The attention that others are compared with, in a few lines of torch: the kit needs nothing of what it checks."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def attend_plainly(
    q: Float[Tensor, "b h n c"],
    k: Float[Tensor, "b h m c"],
    v: Float[Tensor, "b h m e"],
    pairs: Bool[Tensor, "#b #h #n #m"],
    bias: Float[Tensor, "#b #h #n #m"] | None = None,
    scale: float | None = None,
) -> Float[Tensor, "b h n e"]:
    """softmax(q k^T * scale + bias) v over the pairs that are True, which include no values that are not finite; 0
    where there are none (Vaswani et al. 2017, section 3.2.1)."""
    dtype = torch.promote_types(v.dtype, torch.float32)  # a reference does not round on the way
    logits = q.to(dtype) @ k.to(dtype).mT * (q.shape[-1] ** -0.5 if scale is None else scale)
    logits = logits if bias is None else logits + bias.to(dtype)
    forbidden = ~pairs | (logits == -torch.inf)
    # The lowest finite number, not -inf: a row of -inf alone would have NaN gradients.
    weights = logits.masked_fill(forbidden, torch.finfo(dtype).min).softmax(dim=-1).masked_fill(forbidden, 0)
    return (weights @ v.to(dtype)).to(v.dtype)
