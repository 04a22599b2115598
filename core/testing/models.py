"""The checks of a model, beside those in modules.py: padding and what is masked."""

from .measures import Figures, all_close, gradients, trainable
from .module_subjects import ModelSubject
from .modules import SHARED_CHECKS
from .packing import PACKING_CHECKS
from .padding import (
    fully_masked_sample_is_harmless,
    left_padding_changes_nothing,
    padding_changes_nothing,
    padding_changes_nothing_in_training,
)
from .resizing import resized_positions_keep_their_places, resized_to_its_size_changes_nothing
from .runner import Check


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
    Check(left_padding_changes_nothing, ("left",)),
    Check(padding_changes_nothing_in_training, ("padding",)),
    Check(fully_masked_sample_is_harmless, ("emptied",)),
    Check(resized_to_its_size_changes_nothing, ("positions",)),
    Check(resized_positions_keep_their_places, ("positions",)),
    *PACKING_CHECKS,
)
