"""What is logged of each step: its loss, speed, health and alarms; and a trace of the profiler."""

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch.profiler import profile, schedule

from .config import TrainConfig
from .sampling import SampleStream
from .state import TrainingState
from .throughput import Throughput
from .trackers import ReportedRun, check_trackers
from .tracking import Tracker, read_metrics

KNOWN_AFTER = 20.0  # seconds of steps, after which their speed says how long the run takes
LONG = 3600.0  # seconds of a run beyond which it is said what would make it shorter


class StepLog:
    """Measures the steps of this process, and writes their rows to metrics.jsonl if it is the main one."""

    def __init__(
        self,
        config: TrainConfig,
        folder: Path,
        order: SampleStream,
        state: TrainingState,
        quiet: bool = False,
        run_id: str = "",
        starts: Sequence[int] = (0,),
    ):
        """starts: the first step of each size of the samples (see `Growth`)."""
        self.config, self.folder, self.order, self.state, self.quiet = config, folder, order, state, quiet
        check_trackers(config.track)
        self.run_id = run_id
        self.throughput = Throughput(order, state.accelerator.num_processes, starts)
        self.tracker: Tracker | None = None
        self.seconds = 0.0  # spent on steps since this process started
        self.first_step, self.judged = 0, False  # of this process; whether it was seen how long the run takes
        self.last_step, self.last_seconds = 0, 0.0  # at the last row
        self.data_wait = 0.0  # seconds since the last row in which a step waited for its data

    def open(self) -> None:
        """Begin to write, at the present step."""
        state = self.state
        self.first_step = state.step
        logged = state.step if state.step and state.pending_row is None else state.step - 1  # step 0 is measured again
        main = state.accelerator.is_main_process
        others = [ReportedRun(name, self.folder, self.run_id) for name in self.config.track if main]
        self.tracker = Tracker(self.folder, state.step, self.config.steps, logged, main, self.quiet, others)
        self._start_interval()

    def close(self) -> None:
        if self.tracker is not None:
            self.tracker.close()

    def say(self, text: str) -> None:
        if self.tracker is not None:
            self.tracker.say(text)

    def flush(self) -> None:
        if self.tracker is not None:
            self.tracker.flush()

    def write(self, row: dict[str, Any]) -> None:
        if row and self.tracker is not None:
            self.tracker.log(self.state.step, row)

    def write_once(self, row: dict[str, Any]) -> None:
        """As `write`, unless this step has such a row already, since the run was resumed at its end."""
        old = [other for other in read_metrics(self.folder) if other["step"] == self.state.step]
        if not any(row.keys() <= other.keys() for other in old):
            self.write(row)

    def is_logged(self, step: int) -> bool:
        """Whether the step (counted from 1) has a row."""
        return step % self.config.log_every == 0 or step in (1, self.config.steps)

    def measure(
        self, losses: Sequence[Callable[[], torch.Tensor]], samples: Callable[[], list[list[int]]], precision: str
    ) -> float:
        """At the first step, count the operations of its first micro-batch; the seconds that this took.

        losses: each computes the loss of that micro-batch, of another of its sizes.
        """
        started = time.perf_counter()
        if not self.throughput.measured:
            self.throughput.measure(self.state.model, losses, samples()[0], precision)
        return time.perf_counter() - started

    def add_step(self, loss: float, lr: float, seconds: float, data_wait: float) -> None:
        self.seconds += seconds
        self.data_wait += data_wait
        if self.tracker is not None:
            self.tracker.advance(loss, lr)
        if not self.judged and self.seconds >= KNOWN_AFTER:
            self.judged = True
            self._say_if_long()

    def _say_if_long(self) -> None:
        """Say so if training takes hours at this rate, before a user has waited for them."""
        cost, step = self.throughput.cost, self.state.step
        left = self.seconds * cost(step, self.config.steps) / cost(self.first_step, step)
        if left > LONG:
            self.say(
                f"At this rate training takes another {left / 3600:.1f} hours. Fewer steps (--train.steps), a smaller "
                "model (--model.dim, --model.depth) and smaller inputs make it shorter."
            )

    def make_row(self, loss: float, figures: dict[str, float], health: dict[str, float]) -> dict[str, Any]:
        """The row of the step just done. Without figures it has at most alarms.

        figures: learning rate and the like; health: what the monitor measured of each block.
        """
        state, row = self.state, dict[str, Any](figures)
        if figures:
            interval = self.seconds - self.last_seconds
            row["samples"] = self.order.start(state.step)
            row["epoch"] = row["samples"] / self.order.size
            row |= self.throughput.rates(self.last_step, state.step, interval)
            row["data_wait"] = self.data_wait / interval
            row |= health
            if state.accelerator.scaler is not None:
                row["loss_scale"] = state.accelerator.scaler.get_scale()
            if state.skipped_steps:
                row["skipped"] = state.skipped_steps
            self._start_interval()
        spike = state.monitor.spike(loss)
        alarms = [*state.monitor.alarms(health), *([] if spike is None else [spike])]
        for alarm in alarms:
            self.say(f"step {state.step}: {alarm}")
        if alarms:
            row["alarms"] = alarms
        return row

    def _start_interval(self) -> None:
        self.last_step, self.last_seconds, self.data_wait = self.state.step, self.seconds, 0.0

    def profiler(self) -> AbstractContextManager[profile | None]:
        """Writes trace.json of the third to the fifth step from here, if the config asks for it."""
        if not self.config.profile or not self.state.accelerator.is_main_process:
            return nullcontext()
        if self.config.steps - self.state.step < 5:
            self.say("--train.profile: fewer than 5 steps are left, too few for a trace.")
            return nullcontext()

        def save(profiler: profile) -> None:
            path = self.folder / "trace.json"
            profiler.export_chrome_trace(str(path))
            self.say(f"{path} is a trace of the steps up to {self.state.step}: open it at ui.perfetto.dev.")

        return profile(schedule=schedule(wait=1, warmup=1, active=3, repeat=1), on_trace_ready=save)
