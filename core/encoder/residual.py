"""What lies between the branches of a block: a branch is added, and the sum is normed for the next one.

Under autocast to bfloat16 on a CPU both are one pass over memory (../sparse/norms.py), with the same results.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..sparse.norms import Added, AddedAndNormed, serves


def add(x: Float[Tensor, "b n d"], branch: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
    return Added.apply(x, branch) if serves(x, branch) else x + branch  # pyright: ignore[reportReturnType]


def add_and_norm(
    x: Float[Tensor, "b n d"], branch: Float[Tensor, "b n d"] | None, norm: nn.Module, for_branch: bool = True
) -> tuple[Float[Tensor, "b n d"], Float[Tensor, "b n d"]]:
    """x + branch, or x if there is no branch, and its norm.

    for_branch: the norm is only what a branch begins with. Under autocast it may then have autocast's dtype, to which
    the first projection of the branch would convert it.
    """
    if serves(x, branch, norm):
        assert isinstance(norm, nn.LayerNorm)
        dtype = torch.bfloat16 if for_branch else x.dtype
        both: Any = AddedAndNormed.apply(x, branch, norm.weight, norm.bias, norm.eps, dtype)
        return both
    x = x if branch is None else x + branch
    return x, norm(x)
