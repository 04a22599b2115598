"""Training loops that are checked: what they are asked to do, what they give back, what they claim. See subjects.py."""

import gc
import random
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import nn

from .claims import LOOP
from .loop_records import FIRST_OF_EVALUATION, Killed, Pass, Record, Recorded, Samples, Step, Weights, on_cpu, recorded
from .measures import Failed, seeded
from .subjects import Subject
from .written import required

TRAINING_SAMPLES, EVALUATION_SAMPLES = 22, 7  # the last batch of both is uneven
STEPS, BATCH = 9, 8  # three epochs, or somewhat more where the last batch is left out
NEVER = 1000


@dataclass(frozen=True, kw_only=True)
class LoopJob:
    """What a loop is asked to do."""

    model: nn.Module
    """Called as model(tokens): token ids "b t" to logits "b c t"."""
    train: Samples
    """A data set of pairs (tokens "t", targets "t"); targets of -100 are not valid, as in F.cross_entropy."""
    evaluation: Samples
    """As `train`. It is evaluated after the last step, and every `evaluate_every` steps."""
    folder: Path
    """Where to save."""
    steps: int = STEPS
    """Updates of the weights, in all, also where the run is resumed."""
    batch_size: int = BATCH
    """Samples for each update, in all micro-batches and processes together."""
    accumulate: int = 1
    """Micro-batches for each update."""
    lr: float = 0.01
    """Learning rate; the optimiser may be any of torch's, with any schedule."""
    seed: int = 0
    """Decides the order of the data and the dropout; the model has its weights already."""
    evaluation_batch_size: int = 3
    evaluate_every: int = NEVER
    """Steps between evaluations."""
    save_every: int = NEVER
    """Steps between checkpoints; each is written before the next step begins."""
    resume: bool = False
    """Go on from the newest checkpoint in `folder`, as another process that was killed began; the model is new."""
    clip: float | None = None
    """Largest norm of the gradient of an update."""
    ema: float | None = None
    """Decay of an average of the weights."""
    scaler: bool = False
    """Train in fp16 by autocast, with a GradScaler of torch that starts at its default scale."""
    device: str = "cpu"


@dataclass(frozen=True)
class LoopOutcome:
    """What a loop gives back."""

    model: nn.Module
    """The trained model, or a module that contains it."""
    loss: float | None = None
    """Of the evaluation set after the last step: the mean cross entropy of all its valid targets."""
    average: nn.Module | None = None
    """The model with the average of the weights, or a module that contains it."""


@dataclass(frozen=True)
class Run:
    """What a loop did and gave back."""

    train: Samples
    evaluation: Samples
    steps: list[Step]
    passes: list[Pass]
    loss: float | None
    weights: Weights
    average: Weights | None

    @property
    def samples(self) -> list[list[int]]:
        """The samples of each update, in order."""
        return [step.all_samples for step in self.steps]


@dataclass(frozen=True, eq=False)
class LoopSubject(Subject):
    """A training loop: train(job) takes a LoopJob and gives a LoopOutcome.

    Learning rates and gradients are read where an optimiser of torch updates the weights, and samples in the model.
    """

    kind = "loop"
    train: Callable[[LoopJob], LoopOutcome]

    @cached_property
    def found(self) -> dict[Any, Any]:
        """Runs by their options, which several checks look at."""
        return {}

    @cached_property
    def frozen(self) -> bool:
        """Whether the caller has frozen objects, which stay so; found once, since Python counts all of them."""
        return gc.get_freeze_count() > 0

    def default_claims(self) -> frozenset[str]:
        return LOOP

    def run(self, *, again: int = 0, **options: Any) -> Run:
        """A run that nothing interrupts; again: another one with the same options."""
        return self._once((again, *sorted(options.items())), lambda folder: self.start(folder, **options))

    def resumed(self, kill: tuple[int, int], **options: Any) -> Run:
        """A run that was killed, from where it was resumed. kill: updates done, and micro-batches of the next one."""

        def run(folder: Path) -> Run:
            try:
                self.start(folder, kill=kill, **options)
            except Killed:
                return self.start(folder, resume=True, **options)
            raise Failed(f"it ends before update {kill[0] + 1} of {STEPS}, or catches BaseException")

        return self._once(("resumed", kill, *sorted(options.items())), run)

    def _once(self, key: Any, run: Callable[[Path], Any]) -> Any:
        if key not in self.found:
            with tempfile.TemporaryDirectory() as folder:
                self.found[key] = run(Path(folder))
        return self.found[key]

    def start(
        self,
        folder: Path,
        *,
        kill: tuple[int, int] | None = None,
        dropout: float = 0.5,
        even: bool = False,
        rank: int = 0,
        **options: Any,
    ) -> Run:
        """A run in this process; even: all samples have equal numbers of valid targets."""
        record = Record(kill)
        with seeded(0):
            model = Recorded(record, dropout, stretch=8.0 if options.get("scaler") else 1.0)
        train, evaluation = Samples(0, TRAINING_SAMPLES, even), Samples(FIRST_OF_EVALUATION, EVALUATION_SAMPLES)
        options |= {"model": model.to(self.device), "train": train, "evaluation": evaluation, "device": self.device}
        job = LoopJob(folder=folder, **options)
        self.found["started"] = self.found.get("started", 0) + 1
        quick = nullcontext() if self.frozen else _quick_collection()
        with _random_numbers(1000 * rank + self.found["started"]), quick, record.watching():
            outcome = self.train(job)
        if not isinstance(outcome, LoopOutcome):
            raise TypeError(f"it gives something of type {type(outcome).__name__}, not a LoopOutcome")
        average = None if outcome.average is None else _weights(outcome.average)
        return Run(train, evaluation, record.steps, record.passes, outcome.loss, _weights(outcome.model), average)


def is_loop(function: Any) -> bool:
    """Whether a function is written as a training loop, train(job)."""
    return required(function) == ["job"]


def _weights(module: nn.Module) -> Weights:
    return on_cpu(dict(recorded(module).named_parameters()))


@contextmanager
def _random_numbers(seed: int) -> Iterator[None]:
    """Inside, the random state is another for each seed: what a loop does must not depend on what ran before it."""
    numpy = sys.modules.get("numpy")
    python, arrays = random.getstate(), None if numpy is None else numpy.random.get_state()
    try:
        with seeded(seed):
            random.seed(seed)
            if numpy is not None:
                numpy.random.seed(seed)
            yield
    finally:
        random.setstate(python)
        if numpy is not None:
            numpy.random.set_state(arrays)


@contextmanager
def _quick_collection() -> Iterator[None]:
    """Inside, garbage is looked for only among what is new: some loops look at every end, which takes seconds."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
