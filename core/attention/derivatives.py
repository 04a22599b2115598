"""Derivatives that fused kernels do not have: all but those of a plain backward pass."""

import torch

from ..private_torch import in_forward_mode, in_function_transform


def special_derivative() -> str:
    """What kind of derivative is being taken, if it is not a plain one; else empty.

    Inside torch.compile it is always empty: there the operators themselves refuse other derivatives.
    """
    if torch.compiler.is_compiling():
        return ""
    if in_forward_mode():  # torch.func.jvp, jacfwd and hessian open a level, too
        return "forward-mode derivative"
    if in_function_transform():
        return "derivative for torch.func"
    return ""
