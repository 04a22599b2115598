"""The checks of adapters on weights that are stored in lower precision: int8, four bits, bf16."""

import copy

import torch
from torch import Tensor, nn

from .measures import Figures, finite, gradients, normal, require, trainable
from .module_subjects import ModuleSubject

UPDATE = 1e-3  # of a parameter: a usual step of Adam
EFFECT = 1e-2  # of an adapter on the output
MOST_OFF = 0.5  # of that effect


def adapters_learn_beside_quantised_weights(subject: ModuleSubject) -> Figures:
    """Beside quantised weights an adapter has a gradient, and updates of it by a thousandth do not round to nothing."""
    module = _quantised(subject)
    before = {id(parameter) for parameter in module.parameters()}
    adapted = _adapted(subject, module)
    dtype = next((p.dtype for p in module.parameters() if p.is_floating_point()), subject.dtype)
    weights = trainable(adapted)
    require(weights, "the adapter has no trainable parameter")
    grads = gradients(subject.run(adapted, *subject.cast(subject.inputs(), dtype)), weights)
    finite(grads, "gradients of the adapter")
    require(any(bool(grad.any()) for grad in grads), "the adapter has no gradient")
    for name, parameter in adapted.named_parameters():
        if parameter.requires_grad and id(parameter) not in before and bool(parameter.any()):
            kept = parameter.detach() * (1 + UPDATE) != parameter.detach()
            message = f"updates of {name} by a thousandth round to nothing in {parameter.dtype}: keep it in fp32"
            require(float(kept.double().mean()) > 0.5, message)
    return {}


def merged_into_quantised_weights_is_kept(subject: ModuleSubject) -> Figures:
    """An adapter that changes the outputs by a hundredth does so, too, when it is merged into quantised weights."""
    module = _quantised(subject)
    adapted = _adapted(subject, copy.deepcopy(module))
    before = _exactly(subject, module)
    starts = [parameter.detach().clone() for parameter in trainable(adapted)]
    size, change = 0.1, 0.0
    for _ in range(3):  # the effect is nearly proportional to the size
        for i, (parameter, start) in enumerate(zip(trainable(adapted), starts, strict=True)):
            parameter.data = start + size * normal(*start.shape, seed=i, dtype=start.dtype)
        expected = _exactly(subject, adapted)
        change = float((expected - before).norm() / before.norm())
        require(change, "the adapter has no effect")
        if 0.5 * EFFECT < change < 2 * EFFECT:
            break
        size *= EFFECT / change
    assert subject.merge is not None  # which the claim follows from
    off = float((_exactly(subject, subject.merge(adapted)) - expected).norm() / (expected - before).norm())
    message = f"merged, outputs are off by {off:.2g} times what the adapter changes: merge it in full precision"
    require(off < MOST_OFF, message, off=off, size=size)
    return {"off": off}


def _quantised(subject: ModuleSubject) -> nn.Module:
    assert subject.quantise is not None  # which the claim follows from
    return subject.quantise(subject.make()).eval()


def _adapted(subject: ModuleSubject, module: nn.Module) -> nn.Module:
    assert subject.adapt is not None  # which the claim follows from
    return subject.adapt(module).eval()


def _exactly(subject: ModuleSubject, module: nn.Module) -> Tensor:
    """The output with the weights that a module has, computed in the subject's dtype."""
    with torch.no_grad():
        return subject.run(copy.deepcopy(module).to(subject.dtype), *subject.inputs())
