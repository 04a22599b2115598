"""What lies between the branches of a block: a branch is added, and the next one begins with a norm.

Under autocast to bfloat16 on a CPU both are one pass over memory (../sparse/norms.py), with the same results but for
rounding. A norm that only linear layers read has autocast's dtype then, to which they would convert it.
"""

from collections.abc import Sequence
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from ..private_torch import has_hooks
from ..sparse.norms import Added, AddedAndNormed, serves


def add(x: Float[Tensor, "b n d"], branch: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
    return Added.apply(x, branch) if serves(x, branch) else x + branch  # pyright: ignore[reportReturnType]


def add_and_norm(
    x: Float[Tensor, "b n d"], branch: Float[Tensor, "b n d"] | None, norm: nn.Module, readers: Sequence[nn.Module]
) -> tuple[Float[Tensor, "b n d"], Float[Tensor, "b n d"]]:
    """x + branch, or x if there is no branch; and its norm, which these modules read."""
    if serves(x, branch, norm):
        narrow = all(map(_projects, readers))
        total, *normed = _added_and_normed(x, branch, norm, wide=not narrow, narrow=narrow)
        return total, normed[narrow]
    x = x if branch is None else x + branch
    return x, norm(x)


def normed_sum(
    x: Float[Tensor, "b n d"], branch: Float[Tensor, "b n d"], norm: nn.Module, readers: Sequence[nn.Module] = ()
) -> tuple[Float[Tensor, "b n d"], Float[Tensor, "b n d"]]:
    """The norm of x + branch, twice: the next branch is added to the first, and these modules read the second."""
    if serves(x, branch, norm):
        narrow = bool(readers) and all(map(_projects, readers))
        _, *normed = _added_and_normed(x, branch, norm, wide=True, narrow=narrow)
        return normed[0], normed[narrow]
    normed = norm(x + branch)
    return normed, normed


def _projects(module: nn.Module) -> bool:
    """Whether autocast converts what the module reads: a linear layer, or a module of a class that says by
    `input_projection` which of its linear layers alone reads its input."""
    if (name := vars(type(module)).get("input_projection")) and "forward" not in vars(module) and not has_hooks(module):
        module = getattr(module, name)
    return type(module) is nn.Linear and "forward" not in vars(module)


def _added_and_normed(x: Tensor, branch: Tensor | None, norm: Any, wide: bool, narrow: bool) -> Any:
    return AddedAndNormed.apply(x, branch, norm.weight, norm.bias, norm.eps, wide, narrow)
