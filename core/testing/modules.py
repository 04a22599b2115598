"""The checks of encoders and models. Each function is one: its name is the id, its docstring says what must hold.

Those of training are in training.py.
"""

import io
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .caching import cached_equals_at_once
from .cost import grows_as_claimed
from .measures import (
    Figures,
    all_close,
    close,
    everything,
    exported,
    finite,
    gradients,
    left_as_they_were,
    require,
    run_compiled,
    seeded,
    spread_out,
    trainable,
    weighted,
)
from .module_subjects import EncoderSubject, ModuleSubject
from .precision import autocast_takes_half_inputs, fp32_agrees_with_fp64, half_precision_error
from .quantised import adapters_learn_beside_quantised_weights, merged_into_quantised_weights_is_kept
from .runner import Check
from .training import (
    adapters_start_as_identity,
    checkpointing_changes_nothing,
    dropout_is_off_in_evaluation,
    dropout_is_on_in_training,
    gradcheck,
    gradient_reaches_every_parameter,
    merged_equals_unmerged,
    overfits_one_batch,
    shared_parameters_are_shared,
)

HUGE = 1e4


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
    left_as_they_were(_tensors(inputs), before)
    return {}


def batch_changes_nothing(subject: ModuleSubject) -> Figures:
    """A sample gives the same result alone, in any batch, and at any place of it."""
    module, inputs = subject.make(), subject.inputs()
    out = subject.run(module, *inputs)
    for i in range(len(out)):
        alone = subject.run(module, *_rows(inputs, slice(i, i + 1)))
        close(alone, out[i : i + 1], subject.tolerance, f"sample {i} alone")
    back = torch.arange(len(out)).flip(0)
    return close(subject.run(module, *_rows(inputs, back)), out[back], subject.tolerance, "the batch back to front")


def large_inputs_are_stable(subject: ModuleSubject) -> Figures:
    """Inputs 10,000 times as large give finite outputs and gradients, in fp32."""
    module = subject.make().float()
    inputs = tuple(
        HUGE * i if isinstance(i, Tensor) and i.is_floating_point() else i
        for i in subject.cast(subject.inputs(), torch.float32)
    )
    out = subject.run(module, *inputs)
    finite([out, *gradients(out, trainable(module))], "outputs and gradients of inputs times 1e4")
    return {}


def empty_batch(subject: ModuleSubject) -> Figures:
    """A batch of no samples gives no outputs."""
    module, inputs = subject.make(), subject.inputs()
    expected = subject.run(module, *inputs).shape[1:]
    out = subject.run(module, *_rows(inputs, slice(0, 0)))
    require(out.shape == (0, *expected), f"no samples give {tuple(out.shape)}, not {(0, *expected)}")
    return {}


def strides_change_nothing(subject: ModuleSubject) -> Figures:
    """Inputs that are not contiguous in memory give the same result."""
    module, inputs = subject.make(), subject.inputs()
    expected = subject.run(module, *inputs)
    for which in (0, -1):
        spread = (spread_out(i)[which] if isinstance(i, Tensor) else i for i in inputs)
        close(subject.run(module, *spread), expected, subject.tolerance, "output of inputs that are not contiguous")
    return {}


def deterministic(subject: ModuleSubject) -> Figures:
    """The same inputs and random state give the same bits the second time, in evaluation and in training."""
    module, inputs = subject.make(), subject.inputs()
    for training in (False, True):
        runs = []
        for _ in range(2):
            with seeded(0):
                out = subject.run(module.train(training), *inputs)
                runs.append([out, *gradients(out, trainable(module))])
        mode = "training" if training else "evaluation"
        all_close(runs[0], runs[1], 0.0, f"outputs and gradients in {mode}, the second time")
    return {}


def no_grad_changes_nothing(subject: ModuleSubject) -> Figures:
    """Under torch.no_grad and torch.inference_mode, where fast paths may be taken, it gives the same."""
    module, inputs = subject.make(), subject.inputs()
    expected = subject.run(module, *inputs)
    figures: Figures = {}
    for context in (torch.no_grad, torch.inference_mode):
        with context():
            out = subject.run(module, *inputs)
        figures |= close(out, expected, subject.tolerance, f"output under {context.__name__}")
    return figures


def other_ways_agree(subject: ModuleSubject) -> Figures:
    """Called in another way (by another kernel, for attention weights too), it gives the same outputs and gradients."""
    runs, inputs = {}, subject.inputs()
    for name, call in {"": subject.call, **(subject.ways or {})}.items():
        module = subject.make()
        out = replace(subject, call=call).run(module, *inputs)
        runs[name] = [out, *gradients(out, trainable(module))]
    expected = runs.pop("")
    found = [
        all_close(run, expected, subject.tolerance, f"outputs and gradients, {name}") for name, run in runs.items()
    ]
    return max(found, key=lambda figures: figures["error"], default={})


def inference_ways_agree(subject: ModuleSubject) -> Figures:
    """Called in a way for inference alone, as by a kernel without a backward pass, it gives the same outputs."""
    module, inputs = subject.make(), subject.inputs()
    with torch.no_grad():
        expected = subject.run(module, *inputs)
        found = [
            close(replace(subject, call=way).run(module, *inputs), expected, subject.tolerance, f"output, {name}")
            for name, way in (subject.inference_ways or {}).items()
        ]
    return max(found, key=lambda figures: figures["error"], default={})


def state_dict_round_trip(subject: ModuleSubject) -> Figures:
    """Another instance that loads its state dict gives the same bits."""
    module, other, inputs = subject.make(0), subject.make(1), subject.inputs()
    file = io.BytesIO()
    torch.save(module.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file))
    return close(subject.run(other, *inputs), subject.run(module, *inputs), 0.0, "output of another instance")


def compiles(subject: ModuleSubject) -> Figures:
    """Under torch.compile it gives the same results, gradients included."""
    module, inputs = subject.make(), subject.inputs()
    function, weights = partial(subject.run, module), trainable(module)
    out, expected = run_compiled(function, subject.compiler, inputs), function(*inputs)
    tolerance = max(subject.tolerance, 1e-6)
    close(out, expected, tolerance, "output, compiled")
    return all_close(gradients(out, weights), gradients(expected, weights), tolerance, "gradients, compiled")


def exports(subject: ModuleSubject) -> Figures:
    """torch.export makes a program of it that gives the same results, for other samples too."""
    module, inputs = subject.make(), subject.inputs()
    with torch.no_grad():
        program = exported(partial(subject.run, module), inputs, module)
        other = _rows(inputs, torch.arange(len(_tensors(inputs)[0])).flip(0))
        out, expected = program(*other), subject.run(module, *other)
    return close(out, expected, max(subject.tolerance, 1e-6), "output, exported")


def pattern_that_keeps_all_is_none(subject: ModuleSubject) -> Figures:
    """core.sparsify with a pattern that keeps every pair changes neither outputs nor gradients."""
    runs = []
    from ..encoder.surgery import sparsify

    for pattern in (None, everything()):
        module = sparsify(subject.make(), pattern)
        out = subject.run(module, *subject.inputs())
        runs.append([out, *gradients(out, trainable(module))])
    return all_close(runs[1], runs[0], subject.tolerance, "outputs and gradients, sparse")


def cost_grows_as_claimed(subject: ModuleSubject) -> Figures:
    """Counted operations and bytes, forward and backward, grow no faster than the claimed power of the length."""
    module = subject.make().float()

    def step(length: int):
        inputs = subject.cast(subject.inputs_of_length(length), torch.float32)
        return lambda: weighted(subject.run(module, *inputs)).backward()

    for parameter in module.parameters():
        parameter.grad = torch.zeros_like(parameter)
    return grows_as_claimed(step, subject.cost_lengths, subject.cost, subject.timed)


def _tensors(inputs: tuple) -> list[Tensor]:
    return [i for i in inputs if isinstance(i, Tensor)]


def _rows(inputs: tuple, which: Any) -> tuple:
    return tuple(i[which] if isinstance(i, Tensor) else i for i in inputs)


SHARED_CHECKS = (
    Check(shapes_and_dtypes),
    Check(dropout_is_off_in_evaluation),
    Check(deterministic),
    Check(strides_change_nothing),
    Check(batch_changes_nothing),
    Check(no_grad_changes_nothing),
    Check(gradient_reaches_every_parameter),
    Check(gradcheck, ("double",)),
    Check(large_inputs_are_stable, ("large",)),
    Check(fp32_agrees_with_fp64, ("double",)),
    Check(autocast_takes_half_inputs, ("half",)),
    Check(half_precision_error, ("half",), shrinks=False),
    Check(empty_batch, ("empty",)),
    Check(dropout_is_on_in_training, ("dropout",)),
    Check(other_ways_agree, ("ways",)),
    Check(inference_ways_agree, ("inference_ways",)),
    Check(cached_equals_at_once, ("cached",)),
    Check(state_dict_round_trip),
    Check(shared_parameters_are_shared, ("weights",)),
    Check(checkpointing_changes_nothing, ("checkpointing",)),
    Check(compiles, ("compile",), shrinks=False),
    Check(exports, ("export",), shrinks=False),
    Check(pattern_that_keeps_all_is_none, ("sparsify",)),
    Check(cost_grows_as_claimed, ("cost",), shrinks=False),
    Check(overfits_one_batch, shrinks=False),
    Check(adapters_start_as_identity, ("adapters",)),
    Check(merged_equals_unmerged, ("adapters", "merge")),
    Check(adapters_learn_beside_quantised_weights, ("adapters", "quantise")),
    Check(merged_into_quantised_weights_is_kept, ("adapters", "merge", "quantise")),
)
