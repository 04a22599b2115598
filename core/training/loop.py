"""The one training loop.

All that changes depends on nothing but the position in the run: the order of the data on (seed, step), augmentation on
(seed, epoch, index), dropout and mixing on (seed, rank, step, micro-batch), the learning rate and growth on the step.
So a resumed run needs only the weights, the state of the optimiser and one integer to continue bit for bit.
"""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ..errors import UserError
from ..files import reason
from ..memory import check_room, memory_explained
from ..objectives.objective import Batch
from .checkpoint import has_checkpoint
from .config import TrainConfig
from .divergence import Divergence
from .evaluation import Evaluator
from .gradients import step_gradients
from .interruptions import (
    dead_workers_explained,
    deaths_unreported,
    end_workers,
    failed_starts_explained,
    stop_on_signal,
)
from .monitor import tensors_in
from .optim import learning_rate, set_learning_rate
from .order import make_order
from .processes import any_process, is_main, make_accelerator, to_device
from .sampling import MOST_WORKERS, MicroBatches, SeededDataset, cores, seed_everything, train_loader
from .saving import Saver
from .state import TrainingState
from .step_log import StepLog
from .task import Task
from .token_order import TokenOrder

MIXING = 1  # gives mixing random numbers other than the model's


@dataclass
class Fit:
    """The result of `fit`."""

    model: Any
    """The trained model, on the CPU: the average of the weights where there is one; with `patience` the best one."""
    metrics: dict[str, float]
    """Of the test set; empty if the run was stopped before it was evaluated."""
    validation: dict[str, float]
    """Metrics of the validation set when it was last evaluated; empty if it was not, or there is none."""
    measured: dict[str, float]
    """The task's further figures of the model when they were last taken; empty if there are none."""
    results: dict[str, torch.Tensor]
    """What the objective returned for each test sample."""
    step: int
    """Steps done in all."""
    best_step: int | None
    """With `patience`, the step of the best score of the validation set, whose weights the model has."""
    seconds: float
    """Spent on training steps since this process started, without evaluations and checkpoints."""
    finished: bool
    """False if a signal stopped the run before its end."""
    precision: str
    """What the arithmetic ran in."""
    device: str
    operations: float = 0.0
    """Floating-point operations of all steps, those of the optimiser and of evaluation left out."""


def fit(
    task: Task,
    config: TrainConfig,
    run: Path | str,
    *,
    resume: bool = False,
    run_id: str = "",
    begin: Callable[[], None] = lambda: None,
    quiet: bool = False,
) -> Fit:
    """Train the task's model, and write metrics and checkpoints into the directory `run`.

    The validation set is evaluated during training, the test set once, after the last step. With `patience` training
    may end before, and the model that is tested and returned is that of the best score of the validation set.
    If `task.train` has `token_counts`, the number of tokens of each sample, with class and register tokens, steps can
    be cut by tokens (`tokens_per_batch`), or samples with like numbers share a batch (`bucket_lengths`).

    resume: continue from the newest checkpoint in `run`; a new run begins if there is none. The model, data and seed
        must be those that the run began with, which the commands check; `fit` checks the number of samples.
    run_id: is written into the run's checkpoints; checkpoints with another id are left alone.
    begin: is called once it is certain that the run can go on as configured: a new run calls it before its first step,
        a resumed one when it saves its first checkpoint.
    quiet: show no progress, neither a bar nor metrics; alarms and what cannot be written are still said.
    """
    run = Path(run)
    task.check(config)
    if config.workers is None:
        config = replace(config, workers=0 if task.in_memory else min(cores(), MOST_WORKERS))
    if not resume and has_checkpoint(run / "checkpoints", run_id):
        raise UserError(f"{run} holds checkpoints of this run already: resume it, or choose another directory.")
    if is_main():
        try:
            (run / "checkpoints").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"The run directory {run} cannot be written: {reason(error)}.") from None
    with memory_explained("the model and its training", "choose a smaller model"):
        trainer = Trainer(task, config, run, run_id, begin, quiet)
        if resume:
            trainer.saver.restore()
            trainer.resumed = True
    step = trainer.state.step
    if step > config.steps:
        raise UserError(f"{run} is at step {step} already: --train.steps must be more than {config.steps}.")
    advice = f"choose a smaller {_size_option(config)}, a larger --train.accumulate or a smaller model"
    with stop_on_signal() as stopped, memory_explained("a step of this run", advice):
        return trainer.run(stopped)


def _size_option(config: TrainConfig) -> str:
    """The option that says how large a step is."""
    return "--train.batch-size" if config.tokens_per_batch is None else "--train.tokens-per-batch"


class Trainer:
    """A run in progress."""

    def __init__(
        self, task: Task, config: TrainConfig, folder: Path, run_id: str, begin: Callable[[], None], quiet: bool = False
    ):
        self.task, self.config, self.begin = task, config, begin
        self.resumed = False
        self.accelerator, self.precision = make_accelerator(config)
        self.rank, self.world = self.accelerator.process_index, self.accelerator.num_processes
        self.order = make_order(task.train, config, self.world)
        self._check_memory()
        self.state = TrainingState(task.model, len(task.train), config, self.accelerator)
        self.log = StepLog(config, folder, self.order, self.state, quiet, run_id, task.growth.starts(config.steps))
        self.saver = Saver(config, folder, self.state, self.log, run_id, begin)
        self.divergence = Divergence(config, task.objective, self.state, self.saver, self.log)
        self.evaluator = Evaluator(task, config, self.state, (lambda text: None) if quiet else self.log.say)
        self.batches: Iterator[Batch] = iter(())
        self.best_step: int | None = None

    def _check_memory(self) -> None:
        """Refuse a model, or a batch whose samples alone, that exceed the memory."""
        config, parts = self.config, self.config.accumulate * self.world
        count = sum(parameter.numel() for parameter in self.task.model.parameters())
        check_room(16 * count, f"Training a model of {count:,} weights with AdamW", "choose a smaller model")
        seed_everything(config.seed)
        sample = SeededDataset(self.task.train, config.seed)[0, 0]
        batch = self.task.collate([sample])
        if not isinstance(batch, Batch):
            raise UserError(f"The task's collate must return a core.Batch, not a {type(batch).__name__}.")
        size = sum(t.numel() * t.element_size() for t in tensors_in(batch.inputs))
        advice = f"choose a smaller {_size_option(config)}, or a larger --train.accumulate"
        if isinstance(self.order, TokenOrder):
            tokens = self.order.budget // parts
            check_room(tokens * size // int(self.order.counts[0]), f"A batch of {tokens:,} tokens", advice)
        else:
            micro_batch = config.batch_size // parts
            check_room(micro_batch * size, f"A batch of {micro_batch:,} samples", advice)

    def run(self, stopped: Callable[[], bool]) -> Fit:
        """Train up to the last step, or up to the step after which any process is `stopped`."""
        config, state, self.evaluator.stopped = self.config, self.state, stopped
        try:
            if not self.resumed and self.accelerator.is_main_process:
                self.begin()
            self.start()
            if state.step == 0:
                self.evaluator.measure()
                self.log.write({**self.evaluator.measured})
            if state.pending_row is not None:
                score, _ = self.finish_step(state.pending_row)
                if state.pending_row is None:
                    self.saver.save(score)
            stopping = any_process(self.accelerator, stopped())
            with self.log.profiler() as profiler:
                while not self.trained and not stopping:
                    row = self.train_step()
                    if row is None:  # the run went back to a checkpoint
                        continue
                    score, best = self.finish_step(row)
                    stopping = any_process(self.accelerator, stopped())
                    needed = self.trained or stopping or (best and config.patience is not None)
                    if state.step % config.save_every == 0 or needed:
                        self.saver.save(score)
                    if profiler is not None:
                        profiler.step()
            step, finished = state.step, self.trained and state.pending_row is None
            if finished and config.patience is not None:
                finished = self.test_best()
            elif finished and not self.evaluator.test:  # the run was resumed at its end
                finished = self.evaluator.evaluate(last=True)
            if finished and self.accelerator.is_main_process:
                self.begin()
        except Exception:
            self.saver.rescue()
            raise
        finally:
            self.end()
        return Fit(
            model=state.trained_model(),
            metrics=self.evaluator.test,
            validation=self.evaluator.validation,
            measured=self.evaluator.measured,
            results=self.evaluator.test_results,
            step=step,
            best_step=self.best_step,
            seconds=self.log.seconds,
            finished=finished,
            precision=self.precision,
            device=self.accelerator.device.type,
            operations=self.log.throughput.total(state.step),
        )

    @property
    def trained(self) -> bool:
        """Whether the last step is done, or the patience is exhausted."""
        return self.state.step == self.config.steps or self.state.patience.exhausted

    def start(self) -> None:
        """Begin to load data and to write rows, at the present step."""
        config, step = self.config, self.state.step
        self.log.open()
        batches = MicroBatches(self.order, config.accumulate, step, config.steps, self.rank, self.world)
        pinned = self.accelerator.device.type == "cuda"
        with deaths_unreported(), failed_starts_explained():
            self.batches = iter(train_loader(self.task.train, self.task.collate, batches, config.workers or 0, pinned))

    def end(self) -> None:
        end_workers(self.batches)
        self.log.close()

    def train_step(self) -> dict[str, Any] | None:
        """Do a step and return its row; None if the run went back to a checkpoint instead."""
        config, state, step = self.config, self.state, self.state.step
        started = time.perf_counter()
        whole = self.fetch()
        data_wait = time.perf_counter() - started
        losses = [partial(self._loss, whole[0], size) for size in self.task.growth.sizes]
        measuring = self.log.measure(losses, self.samples, self.precision)
        micro_batches = [self.task.growth.resized(batch, step, config.steps) for batch in whole]
        state.prepared.train()
        lr = state.lr_factor * learning_rate(config, step)
        set_learning_rate(state.raw_optimizer, lr, step)
        logged = self.log.is_logged(step + 1)
        loss, norm = step_gradients(
            self.accelerator,
            state.prepared,
            self.task.objective,
            micro_batches,
            self.seed,
            config.clip,
            state.monitor if logged else None,
        )
        health: dict[str, float] = {}
        if math.isfinite(loss) and (math.isfinite(norm) or self.precision == "fp16"):  # fp16: its scaler skips the step
            health = self._update(norm, logged)
            self.divergence.step_succeeded()
        elif self.divergence.step_failed(
            "gradient" if math.isfinite(loss) else "loss", micro_batches, self.samples(), self.seed
        ):
            self.end()
            self.start()
            return None
        state.optimizer.zero_grad(set_to_none=True)
        state.step += 1
        state.is_updating = False
        self.log.add_step(loss, lr, time.perf_counter() - started - measuring, data_wait)
        return self.log.make_row(loss, {"loss": loss, "lr": lr, "grad_norm": norm} if logged else {}, health)

    def _update(self, norm: float, logged: bool) -> dict[str, float]:
        """Update the weights; what the monitor measured, if the step is logged."""
        state, monitor = self.state, self.state.monitor
        clipped = max(norm / self.config.clip, 1.0) if self.config.clip else 1.0
        gradients, before = (monitor.gradients(clipped), monitor.weights()) if logged else ({}, {})
        state.is_updating = True
        state.optimizer.step()
        health = {**gradients, **monitor.updates(before), **monitor.attention(), **monitor.features()} if logged else {}
        self.task.after_step(state.model, state.step + 1)
        if state.average is not None:
            state.average.update_parameters(state.model)
        return health

    def _loss(self, batch: Batch, size: Any) -> torch.Tensor:
        self.seed(0)
        with self.accelerator.autocast():
            return self.task.objective.loss(self.state.model, self.task.growth.resize(batch, size))

    def fetch(self) -> list[Batch]:
        """The step's micro-batches, on the device and of the full size."""
        with dead_workers_explained():
            batches = [to_device(next(self.batches), self.accelerator.device) for _ in range(self.config.accumulate)]
        if self.task.mix is not None:
            for micro, batch in enumerate(batches):
                seed_everything(self.config.seed, self.rank, self.state.step, micro, MIXING)
                batches[micro] = self.task.mix(batch)
        return batches

    def seed(self, micro: int) -> None:
        seed_everything(self.config.seed, self.rank, self.state.step, micro)

    def samples(self) -> list[list[int]]:
        """The indices of the samples in each micro-batch of this step."""
        step, accumulate = self.state.step, self.config.accumulate
        batches = MicroBatches(self.order, accumulate, step, step + 1, self.rank, self.world)
        return [[index for _, index in keys] for keys in batches]

    def finish_step(self, row: dict[str, Any]) -> tuple[float | None, bool]:
        """Evaluate if it is time, and log the step; the score of the validation set, if it was evaluated, and whether
        it is the best so far.

        If a signal interrupts the evaluation, the row is kept until the run goes on.
        """
        state, score, best = self.state, None, False
        last = state.step == self.config.steps
        if last or state.step % self.config.eval_every == 0:
            if not self.evaluator.evaluate(last and self.config.patience is None):
                state.pending_row = row
                return None, False
            row |= {f"validation_{name}": value for name, value in self.evaluator.validation.items()}
            row |= {f"test_{name}": value for name, value in self.evaluator.test.items()} | self.evaluator.measured
            score = self.evaluator.score if self.evaluator.validation else None
            score = score if score is not None and math.isfinite(score) else None
            best = state.patience.judge(score)
        state.pending_row = None
        self.log.write(row)
        return score, best

    def test_best(self) -> bool:
        """Return to the best checkpoint and evaluate the test set; False if a signal interrupts."""
        state, last = self.state, self.state.step
        if state.patience.exhausted:
            primary, waited = self.task.objective.primary, state.patience.waited
            self.log.say(f"step {last}: training ends, no better validation {primary} in {waited} evaluations")
        self.best_step = self.saver.restore_best()
        finished = self.evaluator.evaluate(last=True)
        state.step = last
        if finished:
            tested = {f"test_{name}": value for name, value in self.evaluator.test.items()}
            self.log.write_once({"best_step": self.best_step, **tested})
        return finished
