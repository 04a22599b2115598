"""The checks that encoders and models share. Each function is one: its name is the id, its docstring what must hold."""

import copy
import io
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..encoder.surgery import sparsify
from .cost import grows_as_claimed
from .measures import (
    HALVES,
    Failed,
    Figures,
    Rounded,
    all_close,
    close,
    difference,
    finite,
    gradients,
    half_error_is_bounded,
    normal,
    require,
    run_compiled,
    seeded,
    spread_out,
    weighted,
)
from .runner import Check
from .subjects import EVERYTHING, EncoderSubject, ModuleSubject

HUGE = 1e4
STEP = 1e-5  # of finite differences in fp64: their error is about its square
INSTANCES = 3  # the largest error of one small output says little
STEPS, ENOUGH = 150, 0.1  # Adam's, and the share of the loss that may be left


def shapes_and_dtypes(subject: ModuleSubject) -> Figures:
    """The output is finite, has a row for each sample and the module's dtype, and inputs are left as they were."""
    module, inputs = subject.make(), subject.inputs()
    before = [i.clone() for i in _tensors(inputs)]
    out = subject.run(module, *inputs)
    if isinstance(subject, EncoderSubject):
        require(out.shape == inputs[0].shape, f"the output is {tuple(out.shape)}, not {tuple(inputs[0].shape)}")
    rows = len(before[0])
    require(out.ndim and len(out) == rows, f"the output is {tuple(out.shape)}, and the batch has {rows} samples")
    require(out.dtype == subject.dtype, f"the output is {out.dtype}, not {subject.dtype}")
    finite([out], "output")
    all_close(_tensors(inputs), before, 0.0, "inputs, after the call")
    return {}


def gradient_reaches_every_parameter(subject: ModuleSubject) -> Figures:
    """Every parameter that learns has a finite gradient that is not 0."""
    module = subject.make()
    weighted(subject.run(module, *subject.inputs())).backward()
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            require(parameter.grad is not None and bool(parameter.grad.any()), f"{name} has no gradient")
            finite([parameter.grad], f"gradient of {name}")
    return {}


def gradcheck(subject: ModuleSubject) -> Figures:
    """The gradient of all parameters is what finite differences along a random direction say, in fp64."""
    module, inputs = subject.make(), subject.inputs()
    learned = _learned(module)
    return _along(subject, module, inputs, learned, [normal(*p.shape, seed=i) for i, p in enumerate(learned)], "all")


def batch_changes_nothing(subject: ModuleSubject) -> Figures:
    """A sample gives the same alone, in any batch and in any place of it."""
    module, inputs = subject.make(), subject.inputs()
    out = subject.run(module, *inputs)
    for i in range(len(out)):
        alone = subject.run(module, *_rows(inputs, slice(i, i + 1)))
        close(alone, out[i : i + 1], subject.tolerance, f"sample {i} alone")
    back = torch.arange(len(out)).flip(0)
    return close(subject.run(module, *_rows(inputs, back)), out[back], subject.tolerance, "the batch back to front")


def half_precision_error(subject: ModuleSubject) -> Figures:
    """Under fp16 and bf16 autocast it is at most twice as far from exact as rounding each operation's result."""
    inputs, outs = subject.inputs(), {name: ([], [], []) for name in HALVES}
    with torch.no_grad():
        for seed in range(INSTANCES):
            module = subject.make(seed)
            exact, single = subject.run(module, *inputs), copy.deepcopy(module).float()
            for name, dtype in HALVES.items():
                rounded = copy.deepcopy(module)
                for parameter in rounded.parameters():
                    parameter.copy_(parameter.to(dtype))
                with Rounded(dtype):
                    ideal = subject.run(rounded, *inputs)
                with torch.autocast("cpu", dtype):
                    half = subject.run(single, *subject.cast(inputs, torch.float32))
                for found, out in zip(outs[name], (half, exact, ideal), strict=True):
                    found.append(out)
    figures: Figures = {}
    for name, found in outs.items():
        figures |= half_error_is_bounded(*map(torch.stack, found), name)
    return figures


def large_inputs_are_stable(subject: ModuleSubject) -> Figures:
    """Numbers 10,000 times as large give finite outputs and gradients, in fp32."""
    module = subject.make().float()
    inputs = tuple(
        HUGE * i if isinstance(i, Tensor) and i.is_floating_point() else i
        for i in subject.cast(subject.inputs(), torch.float32)
    )
    out = subject.run(module, *inputs)
    finite([out, *gradients(out, _learned(module))], "outputs and gradients of inputs times 1e4")
    return {}


def empty_batch(subject: ModuleSubject) -> Figures:
    """A batch of no samples gives no outputs."""
    module, inputs = subject.make(), subject.inputs()
    expected = subject.run(module, *inputs).shape[1:]
    out = subject.run(module, *_rows(inputs, slice(0, 0)))
    require(out.shape == (0, *expected), f"no samples give {tuple(out.shape)}, not {(0, *expected)}")
    return {}


def strides_change_nothing(subject: ModuleSubject) -> Figures:
    """Inputs that are not contiguous in memory give the same."""
    module, inputs = subject.make(), subject.inputs()
    expected = subject.run(module, *inputs)
    for which in (0, -1):
        spread = (spread_out(i)[which] if isinstance(i, Tensor) else i for i in inputs)
        close(subject.run(module, *spread), expected, subject.tolerance, "output of inputs that are not contiguous")
    return {}


def deterministic(subject: ModuleSubject) -> Figures:
    """Twice the same inputs and random state give the same bits, in evaluation and in training."""
    module, inputs = subject.make(), subject.inputs()
    for training in (False, True):
        runs = []
        for _ in range(2):
            with seeded(0):
                out = subject.run(module.train(training), *inputs)
                runs.append([out, *gradients(out, _learned(module))])
        all_close(*runs, 0.0, f"outputs and gradients in {'training' if training else 'evaluation'}, the second time")
    return {}


def dropout_is_off_in_evaluation(subject: ModuleSubject) -> Figures:
    """In eval mode the random state counts for nothing, and the module does not change by being called."""
    module, inputs = subject.make(), subject.inputs()
    outs = []
    for seed in (0, 1):
        with seeded(seed):
            outs.append(subject.run(module, *inputs))
    return close(*outs, 0.0, "output in evaluation, at another random state")


def dropout_is_on_in_training(subject: ModuleSubject) -> Figures:
    """In train mode the random state counts, and the mean over many draws is near the output without dropout."""
    module, inputs = subject.make(), subject.inputs()
    with torch.no_grad():
        expected = subject.run(module, *inputs)
        module.train()
        with seeded(0):
            drawn = torch.stack([subject.run(module, *inputs) for _ in range(40)])
    require(bool((drawn[0] != drawn[1]).any()), "nothing is dropped in training")
    # What follows a dropout is not linear, so that the mean is not quite the output: near it is less than half as far.
    spread, bias = float((drawn - expected).square().mean()), float((drawn.mean(0) - expected).square().mean())
    require(bias < 0.5 * spread, "the mean over draws is as far off as the draws are", bias=bias, spread=spread)
    return {"bias / spread": bias / spread}


def state_dict_round_trip(subject: ModuleSubject) -> Figures:
    """Another instance that loads its saved state computes the same bits."""
    module, other, inputs = subject.make(0), subject.make(1), subject.inputs()
    file = io.BytesIO()
    torch.save(module.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file))
    return close(subject.run(other, *inputs), subject.run(module, *inputs), 0.0, "output of another instance")


def checkpointing_changes_nothing(subject: ModuleSubject) -> Figures:
    """Recomputing activations in the backward pass leaves outputs and gradients as they are, in training."""
    module, inputs = subject.make().train(), subject.inputs()
    twin = subject.make(1, subject.checkpointed).train()
    twin.load_state_dict(module.state_dict())

    def recomputed(*inputs: Any) -> Tensor:
        if subject.checkpointed is not None:
            return subject.run(twin, *inputs)
        return checkpoint(partial(subject.run, twin), *inputs, use_reentrant=False)

    runs = []
    for run, weights in ((partial(subject.run, module), _learned(module)), (recomputed, _learned(twin))):
        with seeded(0):
            out = run(*inputs)
            runs.append([out, *gradients(out, weights)])
    return all_close(runs[1], runs[0], subject.tolerance, "outputs and gradients, recomputed")


def compiles(subject: ModuleSubject) -> Figures:
    """Under torch.compile it gives the same, gradients too."""
    module, inputs = subject.make(), subject.inputs()
    function, learned = partial(subject.run, module), _learned(module)
    found, expected = run_compiled(function, subject.compiler, inputs), function(*inputs)
    tolerance = max(subject.tolerance, 1e-6)
    close(found, expected, tolerance, "output, compiled")
    return all_close(gradients(found, learned), gradients(expected, learned), tolerance, "gradients, compiled")


def exports(subject: ModuleSubject) -> Figures:
    """Under torch.export it becomes a program that gives the same for other samples."""
    module, inputs = subject.make(), subject.inputs()
    with torch.no_grad():
        program = torch.export.export(Wrapped(subject, module), inputs, strict=False).module()
        other = _rows(inputs, torch.arange(len(_tensors(inputs)[0])).flip(0))
        found, expected = program(*other), subject.run(module, *other)
    return close(found, expected, max(subject.tolerance, 1e-6), "output, exported")


def pattern_that_keeps_all_is_none(subject: ModuleSubject) -> Figures:
    """core.sparsify by a pattern that keeps every pair and by none give the same outputs and gradients."""
    runs = []
    for pattern in (None, EVERYTHING):
        module = sparsify(subject.make(), pattern)
        out = subject.run(module, *subject.inputs())
        runs.append([out, *gradients(out, _learned(module))])
    return all_close(runs[1], runs[0], subject.tolerance, "outputs and gradients, sparse")


def cost_grows_as_claimed(subject: ModuleSubject) -> Figures:
    """Counted operations and bytes, forward and backward, grow no faster than the claimed power of the length."""
    module = subject.make().float()

    def step(length: int):
        batch = (subject.x(length, batch=1),) if isinstance(subject, EncoderSubject) else subject.sized(length)
        return lambda: weighted(subject.run(module, *subject.cast(batch, torch.float32))).backward()

    for parameter in module.parameters():
        parameter.grad = torch.zeros_like(parameter)
    return grows_as_claimed(step, subject.cost_lengths, subject.cost, subject.timed)


def overfits_one_batch(subject: ModuleSubject) -> Figures:
    """Adam brings the loss of one batch to a tenth within 150 steps."""
    module, inputs = subject.make(fresh=True).float().train(), subject.cast(subject.inputs(), torch.float32)
    loss = partial(subject.loss or partial(_distance, subject), module, *inputs)
    optimizer, first = torch.optim.Adam(_learned(module), lr=subject.rate), None
    with seeded(0):
        for _ in range(STEPS):
            optimizer.zero_grad()
            now = loss()
            now.backward()
            optimizer.step()
            first = float(now.detach()) if first is None else first
            if float(now.detach()) <= ENOUGH * first:
                break
    left = float(now.detach()) / first
    require(left <= ENOUGH, f"{left:.0%} of the loss is left after {STEPS} steps", left=left)
    return {"left": left}


def shared_parameters_are_shared(subject: ModuleSubject) -> Figures:
    """It learns as many numbers as claimed, loaded and copied too, and the gradient of each is whole."""
    module, inputs = subject.make(), subject.inputs()
    twin = subject.make(1)
    twin.load_state_dict(module.state_dict())
    for what, each in {"": module, ", its state loaded": twin, ", copied": copy.deepcopy(module)}.items():
        storages = {p.untyped_storage().data_ptr(): p.numel() for p in each.parameters()}
        found = sum(storages.values())
        require(found == subject.weights, f"it learns {found} numbers{what}, not {subject.weights}")
    learned = _learned(module)
    for i, parameter in enumerate(learned):
        direction = [torch.zeros_like(p) for p in learned]
        direction[i] = normal(*parameter.shape, seed=i, dtype=subject.dtype)
        if "double" in subject.claimed:
            _along(subject, module, inputs, learned, direction, f"parameter {i}")
    return {"weights": float(subject.weights)}


def adapters_start_as_identity(subject: ModuleSubject) -> Figures:
    """With the adapter put on it computes what it did, and what then learns has a gradient."""
    module, inputs = subject.make(), subject.inputs()
    before = subject.run(module, *inputs)
    adapted = subject.adapt(module).eval()
    out = subject.run(adapted, *inputs)
    close(out, before, subject.tolerance, "output with the adapter")
    learned = _learned(adapted)
    require(learned, "the adapter learns nothing")
    require(any(bool(grad.any()) for grad in gradients(out, learned)), "the adapter has no gradient")
    return {"error": difference(out, before)}


class Wrapped(nn.Module):
    """A module called in its subject's way."""

    def __init__(self, subject: ModuleSubject, module: nn.Module):
        super().__init__()
        self.module, self.call = module, subject.run

    def forward(self, *inputs):
        return self.call(self.module, *inputs)


def _along(
    subject: ModuleSubject, module: nn.Module, inputs: tuple, learned: list[Tensor], direction: list[Tensor], what: str
) -> Figures:
    """Finite differences along a direction against the gradient."""
    grads = gradients(subject.run(module, *inputs), learned)
    expected = sum(float((grad * d).sum()) for grad, d in zip(grads, direction, strict=True))
    losses = []
    with torch.no_grad():
        for sign in (1, -2):  # from there back to the other side
            for parameter, d in zip(learned, direction, strict=True):
                parameter += sign * STEP * d
            losses.append(float(weighted(subject.run(module, *inputs))))
        for parameter, d in zip(learned, direction, strict=True):
            parameter += STEP * d
    found = (losses[0] - losses[1]) / (2 * STEP)
    error = abs(found - expected) / max(abs(found), 1.0)
    if not error <= 1e-4:
        raise Failed(f"the gradient of {what} says {expected:.4g} and finite differences {found:.4g}", error=error)
    return {"error": error}


def _distance(subject: ModuleSubject, module: nn.Module, *inputs: Any) -> Tensor:
    """From random signs: of each output of a model, of a random projection of each token of an encoder."""
    out = subject.run(module, *inputs)
    if isinstance(subject, EncoderSubject):
        out = out @ normal(out.shape[-1], seed=4, dtype=out.dtype) / out.shape[-1] ** 0.5
        if len(inputs) > 1:
            out = out[inputs[1]]
    return (out - normal(*out.shape, seed=3, dtype=out.dtype).sign()).square().mean()


def _learned(module: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in module.parameters() if parameter.requires_grad]


def _tensors(inputs: tuple) -> list[Tensor]:
    return [i for i in inputs if isinstance(i, Tensor)]


def _rows(inputs: tuple, which: Any) -> tuple:
    return tuple(i[which] if isinstance(i, Tensor) else i for i in inputs)


SHARED_CHECKS = (
    Check(shapes_and_dtypes),
    Check(gradient_reaches_every_parameter),
    Check(gradcheck, ("double",)),
    Check(batch_changes_nothing),
    Check(half_precision_error, ("half",)),
    Check(large_inputs_are_stable, ("large",)),
    Check(empty_batch, ("empty",)),
    Check(strides_change_nothing),
    Check(deterministic),
    Check(dropout_is_off_in_evaluation),
    Check(dropout_is_on_in_training, ("dropout",)),
    Check(state_dict_round_trip),
    Check(checkpointing_changes_nothing, ("checkpointing",)),
    Check(compiles, ("compile",)),
    Check(exports, ("export",)),
    Check(pattern_that_keeps_all_is_none, ("sparsify",)),
    Check(cost_grows_as_claimed, ("cost",)),
    Check(overfits_one_batch),
    Check(shared_parameters_are_shared, ("weights",)),
    Check(adapters_start_as_identity, ("adapters",)),
)
