"""The checks of an encoder, beside those in modules.py: masks, lengths and order."""

import torch

from .measures import Figures, all_close, close, finite, gradients, require, shuffled
from .module_subjects import PADDING, EncoderSubject
from .modules import SHARED_CHECKS
from .packing import PACKING_CHECKS
from .padding import (
    fully_masked_sample_is_harmless,
    left_padding_changes_nothing,
    mask_holds_in_half_precision,
    padding_changes_nothing,
    padding_changes_nothing_in_training,
)
from .runner import Check


def agrees_with_reference(subject: EncoderSubject) -> Figures:
    """It computes the same as its reference."""
    module, inputs = subject.make(), subject.inputs()
    assert subject.reference is not None  # which the claim follows from
    expected = subject.reference(module, *inputs)
    if len(inputs) > 1:
        expected = expected.where(inputs[1][..., None], 0)
    return close(subject.run(module, *inputs), expected, subject.tolerance, "output")


def padding_comes_out_as_zero(subject: EncoderSubject) -> Figures:
    """The output of a masked token is exactly 0."""
    x, mask = subject.inputs()
    largest = float(subject.raw(subject.make(), x, mask)[~mask].detach().abs().nan_to_num(torch.inf).max())
    require(largest == 0, f"padding comes out as up to {largest:.2g}", largest=largest)
    return {}


def masked_never_leaks(subject: EncoderSubject) -> Figures:
    """NaN and inf in masked tokens change nothing, forward or backward."""
    module, (x, mask) = subject.make(), subject.inputs()
    learned = list(module.parameters())
    expected = subject.run(module, x, mask)
    grads = gradients(expected, learned)
    for poison in (torch.nan, torch.inf):
        out = subject.run(module, x.masked_fill(~mask[..., None], poison), mask)
        close(out, expected, subject.tolerance, f"output with {poison} in the padding")
        all_close(gradients(out, learned), grads, subject.tolerance, f"gradients with {poison} in the padding")
    return {}


def order_changes_nothing(subject: EncoderSubject) -> Figures:
    """Without positions, tokens in another order give the same result in that order."""
    module, x = subject.make(), subject.x()
    order = shuffled(x.shape[1], 2)
    return close(subject.run(module, x[:, order]), subject.run(module, x)[:, order], subject.tolerance, "output")


def future_changes_nothing(subject: EncoderSubject) -> Figures:
    """Causal: no output depends on a later token."""
    module, x = subject.make(), subject.x()
    out = subject.run(module, x)
    for place in subject.places():
        later = x.clone()
        later[:, place:] += 3 * subject.x(seed=1)[:, place:]
        what = f"output before token {place}, which changed"
        close(subject.run(module, later)[:, :place], out[:, :place], subject.tolerance, what)
    return {}


def many_tokens_padding_changes_nothing(subject: EncoderSubject) -> Figures:
    """Nor does padding change anything beside more tokens than a block of a kernel holds, if it takes so many."""
    many = subject.with_many_tokens()
    return padding_changes_nothing(many) if many.takes_its_length() else {}


def many_tokens_future_changes_nothing(subject: EncoderSubject) -> Figures:
    """Causal with more tokens than a block of a kernel holds, too, if it takes so many."""
    many = subject.with_many_tokens()
    return future_changes_nothing(many) if many.takes_its_length() else {}


def length_one(subject: EncoderSubject) -> Figures:
    """A single token gives a finite output, and the same with padding behind it."""
    module, x = subject.make(), subject.x(1)
    out = subject.run(module, x)
    require(out.shape == x.shape, f"the output is {tuple(out.shape)}, not {tuple(x.shape)}")
    finite([out], "output of one token")
    if "mask" not in subject.claimed:
        return {}
    padded = torch.cat([x, subject.x(PADDING, seed=1)], dim=1)
    mask = torch.arange(1 + PADDING).expand(subject.batch, -1) < 1
    return close(subject.run(module, padded, mask)[:, :1], out, subject.tolerance, "output of one token, padded")


def length_zero(subject: EncoderSubject) -> Figures:
    """No tokens give no outputs."""
    x = subject.x(0)
    out = subject.run(subject.make(), x)
    require(out.shape == x.shape, f"no tokens give {tuple(out.shape)}, not {tuple(x.shape)}")
    return {}


ENCODER_CHECKS = (
    *SHARED_CHECKS,
    Check(future_changes_nothing, ("causal",)),
    Check(order_changes_nothing, ("equivariant",)),
    Check(agrees_with_reference, ("reference",)),
    Check(padding_changes_nothing, ("mask",)),
    Check(left_padding_changes_nothing, ("mask", "left")),
    Check(padding_changes_nothing_in_training, ("mask",)),
    Check(mask_holds_in_half_precision, ("mask", "half")),
    Check(padding_comes_out_as_zero, ("mask", "zeros")),
    Check(masked_never_leaks, ("mask",)),
    Check(fully_masked_sample_is_harmless, ("mask",)),
    Check(many_tokens_padding_changes_nothing, ("mask",), shrinks=False),
    Check(many_tokens_future_changes_nothing, ("causal",), shrinks=False),
    Check(length_one),
    Check(length_zero, ("empty",)),
    *PACKING_CHECKS,
)
