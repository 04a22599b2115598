"""`KernelCall`: the arguments of a sparse kernel."""

from typing import NamedTuple

import torch
from torch import Tensor

from .plan import PackedPlan, Plan


def empty_by_tokens(like: Tensor, *shape: int | torch.SymInt) -> Tensor:
    """Memory for "b h n c" in which the heads of a token lie side by side, as models use it next."""
    b, h, n, c = shape
    return like.new_empty(b, n, h, c).transpose(1, 2)


def by_tokens(t: Tensor) -> Tensor:
    """The tensor in such memory."""
    return t.transpose(1, 2).contiguous().transpose(1, 2)


class KernelCall(NamedTuple):
    """Attention by a plan.

    q, k, v: "b h n c", with as many keys as queries unless the plan keeps all pairs. With a packed plan b is 1.
    key_mask: "#b #n", True = may be attended to. bias: "#b #h #n #n", added to the logits. scale: the factor of the
    logits. seed: of the dropout.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    plan: Plan | PackedPlan
    scale: float
    key_mask: Tensor | None = None
    bias: Tensor | None = None
    dropout: float = 0.0
    seed: int = 0
