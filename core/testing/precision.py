"""The checks of encoders and models in fp32, fp16 and bf16. See modules.py."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from .measures import HALVES, Figures, Rounded, close, finite, gradients, half_error_is_bounded, trainable
from .module_subjects import ModuleSubject
from .subjects import TOLERANCES

HALF_PRECISION_INSTANCES = 3  # the largest error of one small output is no good estimate


def fp32_agrees_with_fp64(subject: ModuleSubject) -> Figures:
    """In fp32 it agrees with fp64: nothing is computed in half precision where autocast is off."""
    module, inputs = subject.make(), subject.inputs()
    expected = subject.run(module, *inputs)
    out = subject.run(subject.copy(module).float(), *subject.cast(inputs, torch.float32))
    return close(out, expected, TOLERANCES[torch.float32], "output in fp32, compared with fp64")


def half_precision_error(subject: ModuleSubject) -> Figures:
    """Under fp16 and bf16 autocast its error is at most twice that of rounding each operation's result."""
    inputs = subject.inputs()
    return half_error_of_outputs(subject, lambda module, dtype: subject.run(module, *subject.cast(inputs, dtype)))


def half_error_of_outputs(subject: ModuleSubject, run: Callable[[nn.Module, torch.dtype], Tensor]) -> Figures:
    """Fail if the error under autocast is too large; run: gives the outputs, for inputs of a dtype."""
    outs: dict[str, tuple[list[Tensor], ...]] = {name: ([], [], []) for name in HALVES}
    with torch.no_grad():
        for seed in range(HALF_PRECISION_INSTANCES):
            module = subject.make(seed)
            exact, single = run(module, subject.dtype), subject.copy(module).float()
            for name, dtype in HALVES.items():
                rounded = subject.copy(module)
                for parameter in rounded.parameters():
                    parameter.copy_(parameter.to(dtype))
                with Rounded(dtype):
                    ideal = run(rounded, subject.dtype)
                with torch.autocast(torch.device(subject.device).type, dtype):
                    half = run(single, torch.float32)
                for outputs, out in zip(outs[name], (half, exact, ideal), strict=True):
                    outputs.append(out)
    figures: Figures = {}
    for name, outputs in outs.items():
        figures |= half_error_is_bounded(outputs, name)
    return figures


def autocast_takes_half_inputs(subject: ModuleSubject) -> Figures:
    """Under autocast, inputs in fp16 or bf16, as a layer before gives them, give the same as in fp32, with gradients
    and without."""
    module, inputs, figures = subject.make().float(), subject.inputs(), {}
    for name, dtype in HALVES.items():
        half = subject.cast(inputs, dtype)
        with torch.autocast(torch.device(subject.device).type, dtype):
            expected = subject.run(module, *subject.cast(half, torch.float32))
            finite(gradients(expected, trainable(module)), f"{name}: gradients under autocast")
            out = subject.run(module, *half)
            with torch.no_grad():
                without = subject.run(module, *half)
        for what, found in (("", out), (", without gradients", without)):
            error = close(found, expected, 2 * TOLERANCES[dtype], f"{name}: output of inputs in {name}{what}")
            figures |= {name: error["error"]}
    return figures
