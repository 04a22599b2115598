"""The checks of a training loop that is killed and resumed. See loops.py."""

from typing import Any

from .loop_measures import OTHER, same, same_weights
from .loop_subjects import STEPS, LoopSubject, Run
from .measures import Figures, require

KILLED = 6  # the updates done when it is killed
SAVED = (
    5,
    3,
)  # steps between checkpoints: the newest is amid an epoch; and at the end of one, if epochs end with a step


def samples_go_on_after_resuming(subject: LoopSubject) -> Figures:
    """A resumed run sees the samples that the uninterrupted one sees after the checkpoint, in the same order."""
    for every in SAVED:
        rest, resumed = _both(subject, every)
        for number, (found, expected) in enumerate(zip(resumed.samples, rest.samples, strict=True)):
            if found != expected:
                step = STEPS - len(rest.samples) + number + 1
                kind = "in another order" if sorted(found) == sorted(expected) else "others"
                where = f"after resuming, the samples of step {step} are {kind}"
                require(False, f"{where}: {found}, uninterrupted {expected}")
    return {}


def rate_goes_on_after_resuming(subject: LoopSubject) -> Figures:
    """The learning rate of each step is that of the uninterrupted run; it changes if "schedule" is claimed."""
    for every in SAVED:
        rest, resumed = _both(subject, every)
        rates = [step.rates for step in rest.steps]
        require(len({*rates}) > 1, "the learning rate is always the same: do not claim 'schedule'")
        for number, (found, expected) in enumerate(zip(resumed.steps, rest.steps, strict=True)):
            step = STEPS - len(rates) + number + 1
            message = f"the learning rate of step {step} is {found.rates[0]:.3g}, uninterrupted {expected.rates[0]:.3g}"
            require(found.rates == expected.rates, message)
    return {}


def resumed_equals_uninterrupted(subject: LoopSubject) -> Figures:
    """A run that is killed and resumed ends with the weights of an uninterrupted one, to the bit on a CPU."""
    for every in SAVED:
        figures = _same_end(*_both(subject, every))
    return figures


def resumed_amid_accumulation_equals_uninterrupted(subject: LoopSubject) -> Figures:
    """So does a run that is killed between two micro-batches of an update."""
    return _same_end(*_both(subject, SAVED[0], micro_batches=1, accumulate=2))


def average_goes_on_after_resuming(subject: LoopSubject) -> Figures:
    """The average of the weights of a resumed run is that of an uninterrupted one, to the bit on a CPU."""
    rest, resumed = _both(subject, SAVED[0], ema=0.9)
    found, expected = resumed.average, rest.average
    require(found is not None and expected is not None, "it gives no average: LoopOutcome(model, loss, average)")
    return same_weights(found or {}, expected or {}, "after resuming, the average is")


def scaler_goes_on_after_resuming(subject: LoopSubject) -> Figures:
    """In fp16 a resumed run ends with the weights of an uninterrupted one: the scale of the gradient is saved, too."""
    options = {"save_every": SAVED[0], "scaler": True}
    full = subject.run(**options)
    skipped = STEPS - len(full.steps)
    require(skipped, "no step is skipped, though a scale of 65536 makes gradients inf: is it fp16?")
    require(skipped < KILLED - 1, f"{skipped} of {STEPS} steps are skipped: is the scale lowered?")
    resumed = subject.resumed((KILLED - skipped, 0), **options)
    return same_weights(resumed.weights, full.weights, "after resuming, the weights are")


def _both(subject: LoopSubject, every: int, micro_batches: int = 0, **options: Any) -> tuple[Run, Run]:
    """The steps of the uninterrupted run from the checkpoint on, and the resumed run."""
    options["save_every"] = every
    full, resumed = subject.run(**options), subject.resumed((KILLED, micro_batches), **options)
    saved = STEPS - len(resumed.steps)  # any checkpoint is right from the newest that was asked for on
    newest = KILLED // every * every
    right = newest <= saved <= KILLED
    require(right, f"resumed from step {newest} of {STEPS}, it does {len(resumed.steps)} more, not {STEPS - newest}")
    return Run(**{**vars(full), "steps": full.steps[saved:]}), resumed


def _same_end(rest: Run, resumed: Run) -> Figures:
    """The same weights at the end; if not, what differs first."""
    causes = {
        "samples": "is the place in the data saved?",
        "weights": "is the whole state of the optimiser saved?",
        "gradient": "is the random state saved?",
    }
    for number, (found, expected) in enumerate(zip(resumed.steps, rest.steps, strict=True)):
        for what, cause in causes.items():
            if what == "weights" and number == 0:
                cause = "they are not those that were saved"
            step = STEPS - len(rest.steps) + number + 1
            require(same(found, expected, what), f"after resuming, step {step} has {OTHER[what]}: {cause}")
    return same_weights(resumed.weights, rest.weights, "after resuming, the last weights are")
