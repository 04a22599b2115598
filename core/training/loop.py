"""The one training loop.

Everything random is a pure function of where the run stands: the order of data of (seed, step), augmentation of (seed,
epoch, index), dropout and mixing of (seed, rank, step, micro-batch), the learning rate of the step. So a resumed run
needs weights, optimiser state and one integer to go on bit for bit.
"""

import copy
import math
import os
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.profiler import profile, schedule

from ..errors import UserError
from ..files import reason
from ..memory import check_room, memory_explained
from ..objectives.objective import Batch
from .checkpoint import Damaged, State, has_checkpoint, load_checkpoint, newest_whole, save_checkpoint
from .config import TrainConfig
from .evaluation import evaluate_model
from .gradients import blame_step, step_gradients
from .interruptions import (
    dead_workers_explained,
    deaths_unreported,
    end_workers,
    failed_starts_explained,
    stop_on_signal,
)
from .monitor import Monitor, tensors_in
from .optim import learning_rate, make_optimizer, set_learning_rate
from .processes import (
    is_main,
    load_model_state,
    load_optimizer_state,
    make_accelerator,
    model_state,
    optimizer_state,
    spread,
    to_device,
)
from .sampling import MicroBatches, Order, SeededDataset, seed_everything, train_loader
from .task import Task
from .throughput import Throughput
from .tracking import Tracker

MIXING, EVALUATING = 1, 2  # set their random numbers apart from the model's
MOST_LOST = 5  # steps skipped in a row, or rollbacks, before a run is given up
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass
class Fit:
    """What `fit` gives back."""

    model: nn.Module
    """The trained model (its running average if there is one), on the CPU."""
    metrics: dict[str, float]
    """Of the test set, when last evaluated."""
    results: dict[str, torch.Tensor]
    """What the objective found for each test sample."""
    step: int
    """Steps done in all."""
    seconds: float
    """Spent on training steps by this process since it started, evaluations and checkpoints not counted."""
    finished: bool
    """False if a signal stopped the run before its last step."""
    precision: str
    """What the arithmetic ran in."""
    device: str


def fit(
    task: Task,
    config: TrainConfig,
    run: Path,
    *,
    resume: bool = False,
    run_id: str = "",
    begin: Callable[[], None] = lambda: None,
) -> Fit:
    """Train the task's model, and write metrics and checkpoints into the directory `run`.

    task.train.lengths: if the training data have these lengths, samples of similar length share a batch.
    resume: go on from the newest checkpoint in `run`.
    run_id: marks the run's checkpoints; those that carry another are left alone.
    begin: called once it is sure that the run goes on as configured: a new one before its first step, a resumed one
        when its first checkpoint is saved.
    """
    if len(task.train) == 0 or len(task.test) == 0:
        raise UserError("The data set is empty: training and testing need at least one sample each.")
    if config.workers is None:
        config = replace(config, workers=0 if task.in_memory else min(os.cpu_count() or 1, 8))
    if not resume and has_checkpoint(run / "checkpoints", run_id):
        raise UserError(f"{run} holds checkpoints of this run already: resume it, or choose another directory.")
    if is_main():
        try:
            (run / "checkpoints").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"The run directory {run} cannot be written: {reason(error)}.") from None
    with memory_explained("the model and its training", "choose a smaller model"):
        trainer = Trainer(task, config, run, run_id, begin)
        if resume:
            trainer.restore()
    if trainer.step > config.steps:
        raise UserError(f"{run} is at step {trainer.step} already: --train.steps must be more than {config.steps}.")
    advice = "choose a smaller --train.batch-size, a larger --train.accumulate or a smaller model"
    with stop_on_signal() as stopped, memory_explained("a step of this run", advice):
        return trainer.run(stopped)


class Trainer:
    """A run under way."""

    def __init__(
        self,
        task: Task,
        config: TrainConfig,
        folder: Path,
        run_id: str,
        begin: Callable[[], None],
    ):
        model, train = task.model, task.train
        self.task, self.config, self.folder = task, config, folder
        self.run_id, self.begin, self.resumed = run_id, begin, False
        self.accelerator, self.precision = make_accelerator(config)
        self.rank, self.world = self.accelerator.process_index, self.accelerator.num_processes
        if config.batch_size % (config.accumulate * self.world):
            raise UserError(
                f"--train.batch-size {config.batch_size} cannot be cut into {config.accumulate} micro-batches on "
                f"{self.world} processes: choose a multiple of {config.accumulate * self.world}."
            )
        count = sum(parameter.numel() for parameter in model.parameters())
        check_room(16 * count, f"Training a model of {count:,} weights with AdamW", "choose a smaller model")
        self.check_batch()
        self.average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(config.ema)) if config.ema else None
        sharded = config.shard and self.world > 1
        self.unsharded = copy.deepcopy(model) if sharded else None
        if config.compile:
            model.compile()
        self.prepared = spread(self.accelerator, model, config.shard)
        self.model = self.accelerator.unwrap_model(self.prepared)
        if self.average is not None:
            self.average.to(self.accelerator.device)
            if sharded:
                spread(self.accelerator, self.average.module, shard=True)
        self.raw_optimizer = make_optimizer(self.model, config)
        self.optimizer = self.accelerator.prepare(self.raw_optimizer)
        self.order = Order(config.seed, len(train), config.batch_size, getattr(train, "lengths", None))
        self.monitor = Monitor(self.model, look_at_attention=not config.compile)
        self.throughput = Throughput(self.order, self.world)
        self.step, self.seconds = 0, 0.0
        self.slowed = 1.0  # what rollbacks made of the learning rate
        self.lost = 0  # steps skipped one after the other, or rollbacks
        self.skipped = 0  # steps in all
        self.logged, self.waited = (0, 0.0), 0.0  # step and seconds of the last row; waited for data since
        self.saved = 0  # the step of the newest checkpoint
        self.whole = True  # not in the midst of changing the weights
        self.pending: dict[str, Any] | None = None  # the row of a step that is still to be evaluated and logged
        self.stopped: Callable[[], bool] = lambda: False
        self.metrics: dict[str, float] = {}
        self.results: dict[str, torch.Tensor] = {}
        self.tracker: Tracker | None = None
        self.batches: Iterator[Batch] = iter(())

    def check_batch(self) -> None:
        """Refuse a batch whose samples alone are more than there is memory for."""
        seed_everything(self.config.seed)
        sample = SeededDataset(self.task.train, self.config.seed)[0, 0]
        share = self.config.batch_size // (self.config.accumulate * self.world)
        size = sum(t.numel() * t.element_size() for t in tensors_in(self.task.collate([sample]).inputs))
        advice = "choose a smaller --train.batch-size, or a larger --train.accumulate"
        check_room(share * size, f"A batch of {share:,} samples", advice)

    def run(self, stopped: Callable[[], bool]) -> Fit:
        """Train up to the last step, or the one after which any process finds itself `stopped`."""
        config, self.stopped = self.config, stopped
        try:
            if not self.resumed and self.accelerator.is_main_process:
                self.begin()
            self.start()
            if self.pending is not None:
                score = self.report(self.pending)
                if self.pending is None:
                    self.save(score)
            stopping = self.anyone(stopped())
            with self.profiler() as profiler:
                while self.step < config.steps and not stopping:
                    found = self.train_step()
                    if found is None:  # back at a checkpoint
                        continue
                    score = self.report(self.describe(*found))
                    stopping = self.anyone(stopped())
                    if self.step % config.save_every == 0 or self.step == config.steps or stopping:
                        self.save(score)
                    if profiler is not None:
                        profiler.step()
            finished = self.step == config.steps and self.pending is None
            if finished and not self.metrics:  # the run was resumed at its end
                finished = self.evaluate()
            if finished and self.accelerator.is_main_process:
                self.begin()
        except Exception:
            self.rescue()
            raise
        finally:
            self.end()
        device = self.accelerator.device.type
        return Fit(
            self.trained(), self.metrics, self.results, self.step, self.seconds, finished, self.precision, device
        )

    def start(self) -> None:
        """Begin to read data and to write figures, at the present step."""
        config, main = self.config, self.accelerator.is_main_process
        logged = self.step if self.pending is None else self.step - 1
        self.tracker = Tracker(self.folder, self.step, config.steps, logged, enabled=main)
        batches = MicroBatches(self.order, config.accumulate, self.step, config.steps, self.rank, self.world)
        pinned = self.accelerator.device.type == "cuda"
        with deaths_unreported(), failed_starts_explained():
            self.batches = iter(train_loader(self.task.train, self.task.collate, batches, config.workers, pinned))
        self.logged, self.waited = (self.step, self.seconds), 0.0

    def end(self) -> None:
        end_workers(self.batches)
        if self.tracker is not None:
            self.tracker.close()

    def rescue(self) -> None:
        """Save what was done since the last checkpoint, before an error ends the run."""
        if self.world > 1 and self.unsharded is not None:  # which takes all processes
            return
        if self.whole and self.step > self.saved and self.accelerator.is_main_process:
            with suppress(Exception):  # the error that ends the run says more
                self.write_checkpoint()

    def train_step(self) -> tuple[float, dict[str, float], dict[str, float]] | None:
        """One step, its loss, and if they are to be logged its figures and the model's health; None if it led back."""
        config = self.config
        started = time.perf_counter()
        micro_batches = self.fetch()
        fetched = time.perf_counter()
        self.waited += fetched - started
        if not self.throughput.measured:
            self.measure(micro_batches[0])
        measured = time.perf_counter()
        self.prepared.train()
        lr = self.slowed * learning_rate(config, self.step)
        set_learning_rate(self.raw_optimizer, lr, self.step)
        logs = (self.step + 1) % config.log_every == 0 or self.step + 1 == config.steps or self.step == 0
        loss, norm = step_gradients(
            self.accelerator,
            self.prepared,
            self.task.objective,
            micro_batches,
            self.seed,
            config.clip,
            self.monitor if logs else None,
        )
        health: dict[str, float] = {}
        if math.isfinite(loss) and (math.isfinite(norm) or self.precision == "fp16"):  # fp16: its scaler's job
            if logs:
                clipped = max(norm / config.clip, 1.0) if config.clip else 1.0
                health, before = self.monitor.gradients(clipped), self.monitor.weights()
            self.whole = False
            self.optimizer.step()
            if logs:
                health |= {**self.monitor.updates(before), **self.monitor.attention()}
            if self.average is not None:
                self.average.update_parameters(self.model)
            self.lost = 0 if config.on_divergence == "skip" else self.lost
        elif self.diverged("gradient" if math.isfinite(loss) else "loss", micro_batches):
            return None
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        self.whole = True
        self.seconds += fetched - started + time.perf_counter() - measured
        self.tracker.advance(loss, lr)
        return loss, {"loss": loss, "lr": lr, "grad_norm": norm} if logs else {}, health

    def describe(self, loss: float, row: dict[str, float], health: dict[str, float]) -> dict[str, Any]:
        """What there is to log of the step."""
        since = self.seconds - self.logged[1]
        if row:
            row["epoch"] = self.step * self.config.batch_size / len(self.task.train)
            row |= self.throughput.rates(self.logged[0], self.step, since) | {"data_wait": self.waited / since} | health
            if self.accelerator.scaler is not None:
                row["loss_scale"] = self.accelerator.scaler.get_scale()
            if self.skipped:
                row["skipped"] = self.skipped
            self.logged, self.waited = (self.step, self.seconds), 0.0
        alarms = [*self.monitor.alarms(health), *filter(None, [self.monitor.spike(loss)])]
        for alarm in alarms:
            self.tracker.say(f"step {self.step}: {alarm}")
        return {**row, **({"alarms": alarms} if alarms else {})}

    def report(self, row: dict[str, Any]) -> float | None:
        """Evaluate if it is time, and log the step; how good the model is, if that is known.

        Where a signal breaks off the evaluation, the row is kept for when the run goes on.
        """
        score = None
        if self.step % self.config.eval_every == 0 or self.step == self.config.steps:
            if not self.evaluate():
                self.pending = row
                return None
            row |= {f"test_{name}": value for name, value in self.metrics.items()}
            primary = self.task.objective.primary
            score = self.metrics[primary] * (-1 if primary == "loss" else 1)
            figures = ", ".join(f"{name} {value:.4f}" for name, value in self.metrics.items())
            self.tracker.say(f"step {self.step}: test {figures}")
        self.pending = None
        if row:
            self.tracker.log(self.step, row)
        return score if score is not None and math.isfinite(score) else None

    def fetch(self) -> list[Batch]:
        """The step's micro-batches, on the device."""
        with dead_workers_explained():
            found = [to_device(next(self.batches), self.accelerator.device) for _ in range(self.config.accumulate)]
        if self.task.mix is not None:
            for micro, batch in enumerate(found):
                seed_everything(self.config.seed, self.rank, self.step, micro, MIXING)
                found[micro] = self.task.mix(batch)
        return found

    def seed(self, micro: int) -> None:
        seed_everything(self.config.seed, self.rank, self.step, micro)

    def samples(self) -> list[list[int]]:
        """Which samples are in each micro-batch of this step."""
        step, accumulate = self.step, self.config.accumulate
        batches = MicroBatches(self.order, accumulate, step, step + 1, self.rank, self.world)
        return [[index for _, index in keys] for keys in batches]

    def measure(self, batch: Batch) -> None:
        """What one micro-batch asks of the model and the device."""

        def loss_of() -> torch.Tensor:
            with self.accelerator.autocast():
                return self.task.objective.loss(self.model, batch)

        self.seed(0)
        self.throughput.measure(self.model, loss_of, self.samples()[0], DTYPES[self.precision])

    def diverged(self, what: str, micro_batches: Sequence[Batch]) -> bool:
        """Loss or gradient is not finite: halt, or go back to a checkpoint (True), or leave the step out (False)."""
        config = self.config
        model = self.accelerator, self.prepared, self.task.objective
        why = f"the {what} is not finite; {blame_step(*model, micro_batches, self.samples(), self.seed)}"
        said = f"step {self.step + 1}: {why}"
        self.optimizer.zero_grad(set_to_none=True)
        self.lost += 1
        if config.on_divergence == "halt" or self.lost > MOST_LOST:
            self.save()
            raise UserError(
                f"S{said[1:]}. The weights before it are saved: lower --train.lr, or choose --train.on-divergence skip "
                "or rollback, and go on with --resume."
            )
        lost = self.lost
        if config.on_divergence == "rollback" and self.restore():
            self.slowed /= 2**lost
            self.tracker.say(f"{said}: back to step {self.step}, the learning rate times {self.slowed:g}")
            self.end()
            self.start()
            return True
        self.tracker.say(f"{said}: step left out")
        self.skipped += 1
        return False

    def evaluate(self) -> bool:
        """On the whole test set; False if a signal broke it off."""
        model = self.prepared if self.average is None else self.average.module
        seed_everything(self.config.seed, self.rank, self.step, 0, EVALUATING)
        data = self.task.test, self.task.collate, self.config.eval_batch_size
        found = evaluate_model(
            self.accelerator, model, self.task.objective, *data, stopped=lambda: self.anyone(self.stopped())
        )
        if found is None:
            return False
        self.metrics, self.results = found
        return True

    def save(self, score: float | None = None) -> None:
        problem = ""
        try:
            self.write_checkpoint(score)
        except OSError as error:
            problem = f"{error.filename or self.folder} cannot be written: {reason(error)}"
        if self.anyone(bool(problem)):
            if self.config.on_save_error == "stop" or self.step == self.config.steps:
                raise UserError(f"{problem or 'A checkpoint cannot be written'}. Make room, and go on with --resume.")
            self.tracker.say(f"{problem}: training goes on without it.")

    def write_checkpoint(self, score: float | None = None) -> None:
        """Raises OSError where it cannot be written."""
        weights = model_state(self.model)
        state: State = {
            "optimizer": optimizer_state(self.model, self.raw_optimizer),
            "slowed": self.slowed,
            "skipped": self.skipped,
            "monitor": self.monitor.state(),
        }
        if self.average is not None:
            state["average"] = model_state(self.average)
        if self.accelerator.scaler is not None:
            state["scaler"] = self.accelerator.scaler.state_dict()
        if self.pending is not None:
            state["pending"] = self.pending
        if self.accelerator.is_main_process:
            self.tracker.flush()
            folder = self.folder / "checkpoints"
            save_checkpoint(folder, self.step, weights, state, self.config.keep, score, self.run_id)
            self.begin()
        self.saved = self.step

    def restore(self) -> bool:
        """Go back to the newest checkpoint that is whole, if there is one."""
        path, damages = newest_whole(self.folder / "checkpoints", self.run_id)
        for damage in damages:
            warnings.warn(f"{damage}: going on from the checkpoint before it.", stacklevel=2)
        if self.world > 1 and len(set(gather_object([str(path)]))) > 1:
            raise UserError(f"Not all processes see the same checkpoints: {self.folder} must be on a shared disk.")
        self.resumed = True
        if path is None:
            return False
        try:
            step, weights, state = load_checkpoint(path)
        except Damaged as damage:
            raise UserError(f"{damage}.") from None
        if self.average is not None and "average" not in state:
            raise UserError(f"{self.folder} has no running average of the weights: leave --train.ema at 0.")
        load_model_state(self.model, weights)
        load_optimizer_state(self.model, self.raw_optimizer, state["optimizer"])
        self.step = self.saved = step
        self.slowed, self.skipped, self.pending = state["slowed"], state["skipped"], state.get("pending")
        self.monitor.load(state["monitor"])
        if self.average is not None:
            load_model_state(self.average, state["average"])
        if self.accelerator.scaler is not None and "scaler" in state:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        return True

    def trained(self) -> nn.Module:
        model = self.model if self.average is None else self.average.module
        if self.unsharded is not None:
            load_model_state(self.unsharded, model_state(model))
            model = self.unsharded
        return model.cpu()

    def anyone(self, asked: bool) -> bool:
        """Whether any process is asked to: they must stop at the same step."""
        if self.world == 1:
            return asked
        asked = torch.tensor(float(asked), device=self.accelerator.device)
        return bool(self.accelerator.reduce(asked, reduction="sum"))

    def profiler(self):
        """Leaves trace.json of three steps, the first two not among them."""
        if not self.config.profile or not self.accelerator.is_main_process:
            return nullcontext()
        if self.config.steps - self.step < 5:
            self.tracker.say("--train.profile: no trace is left of fewer than 5 steps")
            return nullcontext()

        def leave(found: profile) -> None:
            path = self.folder / "trace.json"
            found.export_chrome_trace(str(path))
            self.tracker.say(f"{path} shows what was done in steps up to {self.step}: open it at ui.perfetto.dev")

        return profile(schedule=schedule(wait=1, warmup=1, active=3, repeat=1), on_trace_ready=leave)
