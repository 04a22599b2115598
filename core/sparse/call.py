"""`KernelCall`: the arguments of a sparse kernel."""

from typing import NamedTuple

from torch import Tensor

from .plan import PackedPlan, Plan


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
