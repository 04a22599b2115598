"""What lies between the branches of a block: a branch is added, and the next one begins with a norm.

Under autocast to bfloat16 on a CPU both are one pass over memory (../sparse/norms.py). What a branch begins with has
autocast's dtype then, to which the first projection of the branch would convert it.
"""

from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from ..sparse.norms import Added, AddedAndNormed, serves


def add(x: Float[Tensor, "b n d"], branch: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
    return Added.apply(x, branch) if serves(x, branch) else x + branch  # pyright: ignore[reportReturnType]


def add_and_norm(
    x: Float[Tensor, "b n d"], branch: Float[Tensor, "b n d"] | None, norm: nn.Module
) -> tuple[Float[Tensor, "b n d"], Float[Tensor, "b n d"]]:
    """x + branch, or x if there is no branch; and its norm, for the next branch to begin with."""
    if serves(x, branch, norm):
        total, _, normed = _added_and_normed(x, branch, norm, wide=False)
        return total, normed
    x = x if branch is None else x + branch
    return x, norm(x)


def normed_sum(
    x: Float[Tensor, "b n d"], branch: Float[Tensor, "b n d"], norm: nn.Module, last: bool = False
) -> tuple[Float[Tensor, "b n d"], Float[Tensor, "b n d"]]:
    """The norm of x + branch, twice: to add the next branch to, and for that branch to begin with.

    last: no branch follows, and both are the same.
    """
    if serves(x, branch, norm):
        _, wide, narrow = _added_and_normed(x, branch, norm, narrow=not last)
        return wide, wide if last else narrow
    normed = norm(x + branch)
    return normed, normed


def _added_and_normed(x: Tensor, branch: Tensor | None, norm: Any, wide: bool = True, narrow: bool = True) -> Any:
    return AddedAndNormed.apply(x, branch, norm.weight, norm.bias, norm.eps, wide, narrow)
