"""The checks of padding, of encoders and models: behind and before the samples, in training, in half precision."""

import torch
from torch import Tensor, nn

from .measures import HALVES, Figures, all_close, close, finite, gradients, seeded, trainable
from .module_subjects import EncoderSubject, ModelSubject, ModuleSubject
from .subjects import TOLERANCES

FACTORS = {"bf16": 1e4, "fp16": 1e2}  # of the padding: in fp16 larger ones may overflow, which is no matter of masks


def padding_changes_nothing(subject: ModuleSubject) -> Figures:
    """More tokens, masked out, leave the output of the others as it was."""
    return close(*subject.run_padded(subject.make()), subject.tolerance, "output, padded")


def left_padding_changes_nothing(subject: ModuleSubject) -> Figures:
    """Padding before the samples changes nothing, as positions are relative or counted from the first real token."""
    tolerance = max(subject.tolerance, 1e-6)  # the angles of positions are often computed in fp32
    return close(*subject.run_padded(subject.make(), left=True), tolerance, "output, padded on the left")


def padding_changes_nothing_in_training(subject: ModuleSubject) -> Figures:
    """Nor does padding in training, where statistics are of real tokens: outputs and gradients stay the same. Dropout
    is switched off; what is still random is not compared."""
    module = subject.make().train()
    for each in module.modules():
        if isinstance(each, nn.modules.dropout._DropoutNd):
            each.eval()
    with torch.no_grad():
        drawn = []
        for seed in (0, 1):
            with seeded(seed):
                drawn.append(subject.run(module, *subject.inputs()))
    if not torch.equal(drawn[0], drawn[1]):
        return {}
    padded, plain = ([out, *gradients(out, trainable(module))] for out in subject.run_padded(module))
    return all_close(padded, plain, subject.tolerance, "outputs and gradients in training, padded")


def mask_holds_in_half_precision(subject: EncoderSubject) -> Figures:
    """Under fp16 and bf16 autocast, too, large padding changes nothing; and a sample of padding only gives finite
    outputs, if it does so in fp32."""
    module, figures = subject.make().float(), {}
    x, mask = subject.cast(subject.inputs(), torch.float32)
    empty = mask & torch.tensor([False] + [True] * (len(mask) - 1), device=mask.device)[:, None]
    with torch.no_grad():
        harmless = bool(subject.raw(module, x, empty).isfinite().all())
        for name, dtype in HALVES.items():
            with torch.autocast(torch.device(subject.device).type, dtype):
                expected = subject.run(module, x, mask)
                large = subject.run(module, x.where(mask[..., None], FACTORS[name] * x), mask)
                out = subject.raw(module, x, empty)
            what = f"{name}: output with padding {FACTORS[name]:.0e} times as large"
            figures[name] = close(large, expected, TOLERANCES[dtype], what)["error"]
            if harmless:
                finite([out], f"{name}: output with a sample all masked")
    return figures


def fully_masked_sample_is_harmless(subject: ModuleSubject) -> Figures:
    """A sample of padding only gives finite outputs and gradients, and does not change the other samples."""
    module = subject.make()
    out, others = _with_an_empty_sample(subject, module)
    finite([out, *gradients(out, trainable(module))], "outputs and gradients with a sample all masked")
    return close(out[1:], others, subject.tolerance, "output of the other samples")


def _with_an_empty_sample(subject: ModuleSubject, module: nn.Module) -> tuple[Tensor, Tensor]:
    """The output of a batch whose first sample is padding only, and of the others as they should be."""
    if isinstance(subject, ModelSubject):
        assert subject.emptied is not None  # which the claim follows from
        out = subject.run(module, *subject.cast(subject.emptied, subject.dtype))
        return out, subject.run(module, *subject.inputs())[1:]
    assert isinstance(subject, EncoderSubject)
    x, mask = subject.inputs()
    others = subject.run(module, x[1:], mask[1:])
    mask[0] = False
    return subject.raw(module, x, mask), others
