"""What the checks of loops measure with: the gradient that an update should have, epochs, and equal bits."""

import math
from collections.abc import Callable

import torch

from .loop_records import Record, Recorded, Samples, Step, Weights
from .loop_subjects import TRAINING_SAMPLES, Run
from .measures import Figures, difference, require

ROUNDING = 1e-4  # of a gradient, over its norm
PARTS = 4  # micro-batches of an update
OTHER = {"samples": "other samples", "weights": "other weights", "gradient": "another gradient"}


def same_weights(found: Weights, expected: Weights, what: str) -> Figures:
    """Fail unless they have the same bits."""
    error = max(difference(found[name], value) for name, value in expected.items())
    equal = all(torch.equal(found[name], value) for name, value in expected.items())
    require(equal, f"{what} others (off by {error:.1e})", error=error)
    return {"error": error}


def same(found: Step, expected: Step, what: str) -> bool:
    """Whether two updates have the same samples, weights or gradient, to the bit."""
    a, b = getattr(found, what), getattr(expected, what)
    return all(torch.equal(a[name], b[name]) for name in b) if isinstance(b, dict) else a == b


def model_of(weights: Weights) -> Recorded:
    """The kit's model without dropout, on the CPU."""
    model = Recorded(Record(), dropout=0.0).cpu().eval()
    model.load_state_dict(weights)
    return model


def of_all_parts(step: Step) -> bool:
    """Whether an update has all of its micro-batches, and all are of the same size."""
    return len(step.samples) == PARTS and len({*map(len, step.samples)}) == 1


def of_fewer_parts(step: Step) -> bool:
    return len(step.samples) < PARTS


def right_gradients(run: Run, chosen: Callable[[Step], bool] = lambda step: True, clip: float = math.inf) -> Figures:
    """Fail unless the chosen updates have the gradient of the mean loss over the valid targets of their samples."""
    worst, count = 0.0, 0.0
    for number, step in enumerate(run.steps, 1):
        if not chosen(step):
            continue
        samples = step.all_samples
        require(samples, f"update {number} comes without a backward pass")
        found, right = flat(step.gradient), gradient(step.weights, run.train, samples)
        expected = right * min(1.0, clip / float(right.norm()))
        error = float((found - expected).norm() / expected.norm())
        if error > ROUNDING:
            raise_wrong(number, step, found, expected, error)
        worst, count = max(worst, error), count + 1
    return {"error": worst, "updates": count}


def raise_wrong(number: int, step: Step, found: torch.Tensor, expected: torch.Tensor, error: float) -> None:
    """Fail with what the gradient is instead."""
    times = float(found @ expected / (expected @ expected))
    parts = f"micro-batches of {', '.join(str(len(part)) for part in step.samples)} samples"
    if float((found - times * expected).norm()) < ROUNDING * float(found.norm()):
        kind = f"is {times:.3g} times that of its samples"
    else:
        kind = f"is not that of its samples (off by {error:.1%})"
    require(False, f"the gradient of update {number} ({parts}) {kind}", error=error)


def gradient(weights: Weights, train: Samples, samples: list[int]) -> torch.Tensor:
    """Of the mean loss over the valid targets of samples, all parameters in one vector."""
    model = model_of(weights)
    train.loss(model, samples).backward()
    return flat({name: p.grad for name, p in model.named_parameters() if p.grad is not None})


def flat(tensors: Weights) -> torch.Tensor:
    return torch.cat([tensors[name].flatten() for name in sorted(tensors)]).double()


def epochs_of(run: Run, batches: tuple[int, ...]) -> list[list[int]]:
    """The order of the samples in each epoch, the last of which may be cut short.

    An epoch has all samples, or those of whole batches of one of the given sizes: the longest that repeats none.
    """
    order = [sample for samples in run.samples for sample in samples]
    sizes = sorted({TRAINING_SAMPLES, *(TRAINING_SAMPLES // batch * batch for batch in batches)}, reverse=True)
    cuts = {size: [order[first : first + size] for first in range(0, len(order), size)] for size in sizes}
    fitting = (cut for cut in cuts.values() if all(len({*epoch}) == len(epoch) for epoch in cut))
    return next(fitting, cuts[TRAINING_SAMPLES])
