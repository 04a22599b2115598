"""The checks of a model, beside those in modules.py: padding and what is masked."""

from .measures import Figures, all_close, close, gradients, trainable
from .module_subjects import ModelSubject
from .modules import SHARED_CHECKS
from .packing import PACKING_CHECKS
from .runner import Check


def padding_changes_nothing(subject: ModelSubject) -> Figures:
    """The same samples with more padding give the same result."""
    module = subject.make()
    expected = subject.run(module, *subject.inputs())
    assert subject.padded is not None  # which the claim follows from
    out = subject.run(module, *subject.cast(subject.padded, subject.dtype))
    return close(out[tuple(map(slice, expected.shape))], expected, subject.tolerance, "output, padded")


def masked_never_leaks(subject: ModelSubject) -> Figures:
    """Other values where the inputs are masked change nothing, forward or backward."""
    module, runs = subject.make(), []
    assert subject.altered is not None  # which the claim follows from
    for batch in (subject.inputs(), subject.cast(subject.altered, subject.dtype)):
        out = subject.run(module, *batch)
        runs.append([out, *gradients(out, trainable(module))])
    return all_close(runs[1], runs[0], subject.tolerance, "outputs and gradients with other padding")


MODEL_CHECKS = (
    *SHARED_CHECKS,
    Check(masked_never_leaks, ("masking",)),
    Check(padding_changes_nothing, ("padding",)),
    *PACKING_CHECKS,
)
