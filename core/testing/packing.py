"""The checks of what takes samples of different lengths together, without padding: encoders in a row, models in a list.

A sample is a tensor without the axis of the batch.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .measures import Figures, all_close, gradients, trainable
from .module_subjects import ModuleSubject
from .precision import half_error_of_outputs
from .runner import Check


def packed_equals_alone(subject: ModuleSubject) -> Figures:
    """A sample packed with others, of other sizes, gives what it gives alone."""
    module, samples = subject.make(), subject.packed_samples()
    alone = [subject.run_alone(module, sample) for sample in samples]
    return all_close(subject.run_packed(module, samples), alone, subject.tolerance, "output of a packed sample")


def packed_gradients_equal_alone(subject: ModuleSubject) -> Figures:
    """The gradients of packed samples are the sum of those of each alone."""
    module, samples = subject.make(), subject.packed_samples()
    alone = [subject.run_alone(module, sample) for sample in samples]
    found = _gradients(module, subject.run_packed(module, samples))
    return all_close(found, _gradients(module, alone), subject.tolerance, "gradients of packed samples")


def packed_order_changes_nothing(subject: ModuleSubject) -> Figures:
    """Packed samples in another order give the same results in that order."""
    module, samples = subject.make(), subject.packed_samples()
    out = subject.run_packed(module, samples)
    other = subject.run_packed(module, samples[::-1])[::-1]
    return all_close(other, out, subject.tolerance, "output of packed samples back to front")


def packed_never_leaks(subject: ModuleSubject) -> Figures:
    """Other values in a packed sample, NaN and inf included, change no other sample, forward or backward."""
    module, samples, figures = subject.make(), subject.packed_samples(), {}
    for i in range(len(samples)):
        expected, grads = _of_others(subject, module, samples, i)
        for poison in _others(samples[i]):
            found, found_grads = _of_others(subject, module, [*samples[:i], poison, *samples[i + 1 :]], i)
            what = f"of the others, with other values in sample {i}"
            all_close(found, expected, subject.tolerance, f"output {what}")
            figures = all_close(found_grads, grads, subject.tolerance, f"gradients {what}")
    return figures


def packed_half_precision_error(subject: ModuleSubject) -> Figures:
    """Under fp16 and bf16 autocast the error of packed samples is at most twice that of rounding each operation's
    result."""
    samples = subject.packed_samples()
    return half_error_of_outputs(
        subject, lambda module, dtype: _joined(subject.run_packed(module, [*subject.cast(samples, dtype)]))
    )


def _of_others(
    subject: ModuleSubject, module: nn.Module, samples: Sequence[Tensor], i: int
) -> tuple[list[Tensor], list[Tensor]]:
    """The outputs of all samples but one, and their gradients of all samples but that (not of weights, which all
    samples share: 0 times NaN is NaN there)."""
    leaves = [sample.detach().clone().requires_grad_(sample.is_floating_point()) for sample in samples]
    outs = subject.run_packed(module, leaves)
    outs, inputs = outs[:i] + outs[i + 1 :], leaves[:i] + leaves[i + 1 :]
    inputs = [leaf for leaf in inputs if leaf.requires_grad]
    return outs, gradients(_joined(outs), inputs) if inputs else []


def _others(sample: Tensor) -> list[Tensor]:
    """The sample with other values: NaN and inf too, unless it is of whole numbers."""
    if not sample.is_floating_point():  # only its own numbers are sure to be valid
        return [sample.flip(-1), sample.flatten()[:1].expand(sample.shape)]
    return [sample.flip(-1), *(torch.full_like(sample, value) for value in (torch.nan, torch.inf))]


def _gradients(module: nn.Module, outs: Sequence[Tensor]) -> list[Tensor]:
    return gradients(_joined(outs), trainable(module))


def _joined(outs: Sequence[Tensor]) -> Tensor:
    return torch.cat([out.flatten() for out in outs])


PACKING_CHECKS = (
    Check(packed_never_leaks, ("packing",)),
    Check(packed_order_changes_nothing, ("packing",)),
    Check(packed_equals_alone, ("packing",)),
    Check(packed_gradients_equal_alone, ("packing",)),
    Check(packed_half_precision_error, ("packing", "half"), shrinks=False),
)
