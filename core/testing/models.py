"""The checks of a model, beside those in modules.py: what its padding may do."""

from .measures import Figures, all_close, close, gradients
from .modules import SHARED_CHECKS
from .runner import Check
from .subjects import ModelSubject


def padding_changes_nothing(subject: ModelSubject) -> Figures:
    """The same samples with more padding give the same."""
    module = subject.make()
    expected = subject.run(module, *subject.inputs())
    found = subject.run(module, *subject.cast(subject.padded, subject.dtype))
    return close(found[tuple(map(slice, expected.shape))], expected, subject.tolerance, "output, padded")


def masked_never_leaks(subject: ModelSubject) -> Figures:
    """Other numbers where nothing counts change nothing, forward or backward."""
    module, runs = subject.make(), []
    for batch in (subject.inputs(), subject.cast(subject.spoilt, subject.dtype)):
        out = subject.run(module, *batch)
        runs.append([out, *gradients(out, [p for p in module.parameters() if p.requires_grad])])
    return all_close(runs[1], runs[0], subject.tolerance, "outputs and gradients with other padding")


MODEL_CHECKS = (
    *SHARED_CHECKS,
    Check(padding_changes_nothing, ("padding",)),
    Check(masked_never_leaks, ("masking",)),
)
