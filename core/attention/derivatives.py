"""Derivatives that fused kernels do not have: all but those of a plain backward pass."""

from typing import Any

import torch
from torch.autograd import forward_ad

functorch: Any = vars(torch._C)["_functorch"]


def special_derivative() -> str:
    """What kind of derivative is being taken, if it is not a plain one; else empty.

    Inside torch.compile it is always empty: there the operators themselves refuse other derivatives.
    """
    if torch.compiler.is_compiling():
        return ""
    if forward_ad._current_level >= 0:  # torch.func.jvp, jacfwd and hessian open a level, too
        return "forward-mode derivative"
    levels = functorch.get_interpreter_stack() or ()
    if any(level.key() != functorch.TransformType.Vmap for level in levels):
        return "derivative for torch.func"
    return ""
