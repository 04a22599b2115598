"""The checks of encoders and models in training: gradients, dropout, checkpointing, adapters. See modules.py."""

import copy
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .measures import (
    Figures,
    all_close,
    close,
    difference,
    finite,
    gradients,
    normal,
    require,
    seeded,
    trainable,
    weighted,
)
from .module_subjects import EncoderSubject, ModuleSubject

DIFFERENCE_STEP = 1e-5  # of finite differences in fp64: their error is about its square
ADAM_STEPS = 150
LOSS_LEFT = 0.1  # the fraction of the first loss that may be left after them


def gradient_reaches_every_parameter(subject: ModuleSubject) -> Figures:
    """Every trainable parameter has a finite gradient that is not 0; so have the inputs of an encoder."""
    module, inputs = subject.make(), subject.inputs()
    require(trainable(module), "it has no trainable parameter")
    if isinstance(subject, EncoderSubject):
        inputs[0].requires_grad_()
    out = subject.run(module, *inputs)
    require(out.requires_grad, "the output has no gradient: is it detached, or computed under torch.no_grad?")
    weighted(out).backward()
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            gradient = torch.zeros(()) if parameter.grad is None else parameter.grad
            require(bool(gradient.any()), f"{name} has no gradient")
            finite([gradient], f"gradient of {name}")
    if isinstance(subject, EncoderSubject):
        gradient = inputs[0].grad
        require(
            gradient is not None and bool(gradient.any()),
            "its inputs have no gradient: does it detach them? An embedding in front of it would learn nothing",
        )
    return {}


def gradcheck(subject: ModuleSubject) -> Figures:
    """The gradient of all parameters, and of the inputs of an encoder, agrees with finite differences along a random
    direction, in fp64."""
    module, inputs = subject.make(), subject.inputs()
    weights = trainable(module)
    direction = [normal(*p.shape, seed=i) for i, p in enumerate(weights)]
    figures = _gradient_along(direction, subject, module, inputs, "all parameters")
    if not isinstance(subject, EncoderSubject):
        return figures
    x, still = inputs[0].requires_grad_(), [torch.zeros_like(p) for p in weights]
    return figures | _gradient_along([*still, normal(*x.shape, seed=77)], subject, module, inputs, "the inputs", [x])


def dropout_is_off_in_evaluation(subject: ModuleSubject) -> Figures:
    """In eval mode the random state has no influence, and a call does not change the module."""
    module, inputs = subject.make(), subject.inputs()
    outs = []
    for seed in (0, 1):
        with seeded(seed):
            outs.append(subject.run(module, *inputs))
    return close(outs[0], outs[1], 0.0, "output in evaluation, at another random state")


def dropout_is_on_in_training(subject: ModuleSubject) -> Figures:
    """In train mode the random state has an influence, and the mean of many draws is near the output in evaluation."""
    module, inputs = subject.make(), subject.inputs()
    with torch.no_grad():
        expected = subject.run(module, *inputs)
        module.train()
        with seeded(0):
            drawn = torch.stack([subject.run(module, *inputs) for _ in range(40)])
    require(bool((drawn[0] != drawn[1]).any()), "nothing is dropped in training")
    # What follows a dropout is not linear, so the mean is not quite the output; "near" is less than half as far.
    spread, bias = float((drawn - expected).square().mean()), float((drawn.mean(0) - expected).square().mean())
    require(bias < 0.5 * spread, "the mean over draws is as far off as the draws are", bias=bias, spread=spread)
    return {"bias / spread": bias / spread}


def checkpointing_changes_nothing(subject: ModuleSubject) -> Figures:
    """Recomputing activations in the backward pass changes neither outputs nor gradients, in training."""
    module, inputs = subject.make().train(), subject.inputs()
    twin = subject.make(1, subject.checkpointed).train()
    twin.load_state_dict(module.state_dict())

    def recomputed(*inputs: Any) -> Tensor:
        if subject.checkpointed is not None:
            return subject.run(twin, *inputs)
        return checkpoint(partial(subject.run, twin), *inputs, use_reentrant=False)

    runs = []
    for run, weights in ((partial(subject.run, module), trainable(module)), (recomputed, trainable(twin))):
        with seeded(0):
            out = run(*inputs)
            runs.append([out, *gradients(out, weights)])
    return all_close(runs[1], runs[0], subject.tolerance, "outputs and gradients, recomputed")


def overfits_one_batch(subject: ModuleSubject) -> Figures:
    """Adam brings the loss of one batch to a tenth within 150 steps."""
    module, inputs = subject.make(fresh=True).float().train(), subject.cast(subject.inputs(), torch.float32)
    require(trainable(module), "it has no trainable parameter")
    loss = partial(subject.loss or partial(_distance, subject), module, *inputs)
    optimizer, losses = torch.optim.Adam(trainable(module), lr=subject.rate), []
    with seeded(0):
        for _ in range(ADAM_STEPS):
            optimizer.zero_grad()
            current = loss()
            require(current.requires_grad, "the output has no gradient")
            current.backward()
            optimizer.step()
            losses.append(float(current.detach()))
            if losses[-1] <= LOSS_LEFT * losses[0]:
                break
    left = losses[-1] / losses[0]
    require(left <= LOSS_LEFT, f"{left:.0%} of the loss is left after {ADAM_STEPS} steps", left=left)
    return {"left": left}


def shared_parameters_are_shared(subject: ModuleSubject) -> Figures:
    """It has as many weights as claimed, also when loaded or copied, and each has its whole gradient."""
    module, inputs = subject.make(), subject.inputs()
    twin = subject.make(1)
    twin.load_state_dict(module.state_dict())
    for what, each in {"": module, ", its state loaded": twin, ", copied": copy.deepcopy(module)}.items():
        storages = {p.untyped_storage().data_ptr(): p.numel() for p in each.parameters()}
        count = sum(storages.values())
        require(count == subject.weights, f"it has {count} weights{what}, not {subject.weights}")
    weights = trainable(module)
    for i, parameter in enumerate(weights):
        direction = [torch.zeros_like(p) for p in weights]
        direction[i] = normal(*parameter.shape, seed=i, dtype=subject.dtype)
        if "double" in subject.claimed:
            _gradient_along(direction, subject, module, inputs, f"parameter {i}")
    return {"weights": float(subject.weights or 0)}


def adapters_start_as_identity(subject: ModuleSubject) -> Figures:
    """With a new adapter it computes what it did before, and the adapter has a gradient."""
    module, inputs = subject.make(), subject.inputs()
    before = subject.run(module, *inputs)
    assert subject.adapt is not None  # which the claim follows from
    adapted = subject.adapt(module).eval()
    out = subject.run(adapted, *inputs)
    close(out, before, subject.tolerance, "output with the adapter")
    weights = trainable(adapted)
    require(weights, "the adapter has no trainable parameter")
    require(any(bool(grad.any()) for grad in gradients(out, weights)), "the adapter has no gradient")
    return {"error": difference(out, before)}


def merged_equals_unmerged(subject: ModuleSubject) -> Figures:
    """Merged into the weights, an adapter that has been trained gives what it gave beside them."""
    assert subject.adapt is not None and subject.merge is not None  # which the claims follow from
    module, inputs = subject.adapt(subject.make()).eval(), subject.inputs()
    with torch.no_grad():
        for i, parameter in enumerate(trainable(module)):
            parameter += 0.1 * normal(*parameter.shape, seed=i, dtype=parameter.dtype)
        expected = subject.run(module, *inputs)
        out = subject.run(subject.merge(module), *inputs)
    return close(out, expected, subject.tolerance, "output with the adapter merged")


def _gradient_along(
    direction: list[Tensor],
    subject: ModuleSubject,
    module: nn.Module,
    inputs: tuple,
    what: str,
    learned: Sequence[Tensor] = (),
) -> Figures:
    """Compare the gradient along a direction with finite differences; direction: one tensor for each trainable
    parameter, and for each of `learned` besides."""
    weights = [*trainable(module), *learned]
    grads = gradients(subject.run(module, *inputs), weights)
    expected = sum(float((grad * d).sum()) for grad, d in zip(grads, direction, strict=True))
    losses = []
    with torch.no_grad():
        for sign in (1, -2):  # from there back to the other side
            for parameter, d in zip(weights, direction, strict=True):
                parameter += sign * DIFFERENCE_STEP * d
            losses.append(float(weighted(subject.run(module, *inputs))))
        for parameter, d in zip(weights, direction, strict=True):
            parameter += DIFFERENCE_STEP * d
    slope = (losses[0] - losses[1]) / (2 * DIFFERENCE_STEP)
    error = abs(slope - expected) / max(abs(slope), 1.0)
    require(error <= 1e-4, f"the gradient of {what} is {expected:.4g}, by finite differences {slope:.4g}", error=error)
    return {"error": error}


def _distance(subject: ModuleSubject, module: nn.Module, *inputs: Any) -> Tensor:
    """The mean squared distance to random signs of a model's outputs, or of an encoder's tokens, randomly projected."""
    out = subject.run(module, *inputs)
    if isinstance(subject, EncoderSubject):
        out = out @ normal(out.shape[-1], seed=4, dtype=out.dtype) / out.shape[-1] ** 0.5
        if len(inputs) > 1:
            out = out[inputs[1]]
    return (out - normal(*out.shape, seed=3, dtype=out.dtype).sign()).square().mean()
