"""The commands of several runs: one after the other, several at once on this machine, or on a Slurm cluster.

`--jobs 4` runs four at once, each on a GPU of its own where there are GPUs, and on its share of the cores;
`--slurm partition=gpu,time=240` hands them to Slurm by submitit. What a run writes is then in its log.txt.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..submitted import LOOKS, Command, open_log, resumed
from ..training.interruptions import STOPS
from ..training.sampling import cores
from .words import Option

FIELDS = ("jobs", "slurm")
FOLDER = "jobs"
FROM_TERMINAL = {getattr(signal, name) for name in ("SIGINT", "SIGHUP") if hasattr(signal, name)}
REQUEUED = 1000  # times that Slurm takes up a run again whose time has ended


@dataclass(frozen=True)
class Places:
    """Where runs are started.

    most: how many at once; None: one here, and on a cluster as many as there are. slurm: options of sbatch, an empty
    one for submitit's processes on this machine; None: not by submitit.
    """

    most: int | None = None
    slurm: dict[str, str] | None = None

    @classmethod
    def of(cls, options: Sequence[Option]) -> "Places":
        """As --jobs and --slurm ask for it."""
        jobs, slurm = (
            [word for option in options if option.field == field for word in option.given] for field in FIELDS
        )
        most = None
        if any(option.field == "jobs" for option in options):
            if len(jobs) != 1 or not jobs[0].isdecimal() or int(jobs[0]) < 1:
                raise UserError(f"--jobs must be a whole number of at least 1, not {' '.join(jobs) or 'nothing'}.")
            most = int(jobs[0])
        if not any(option.field == "slurm" for option in options):
            return cls(most)
        if find_spec("submitit") is None:
            raise UserError("--slurm needs the package submitit: pip install submitit.")
        given = ",".join(slurm)
        if given == "local":
            return cls(most, {})
        settings = {part.partition("=")[0]: part.partition("=")[2] for part in given.split(",")}
        if not all(key and value for key, value in settings.items()) or not settings.get("time", "").isdecimal():
            raise UserError(
                f"--slurm {given or 'nothing'} is not understood: give options of sbatch, the minutes of a run among "
                "them, as in partition=gpu,time=240, or local to try submitit on this machine."
            )
        if shutil.which("sbatch") is None:
            raise UserError("--slurm: there is no sbatch here; start it where jobs are submitted, or use --jobs.")
        return cls(most, settings)


@dataclass
class Job:
    """A run that was started."""

    run: Path
    slot: int
    code: int | None = None
    """The exit code of its command, once it has ended; negative for a signal."""

    def poll(self) -> None:
        """Set `code` if the command has ended."""
        raise NotImplementedError

    def end(self) -> None:
        """Ask it to save a checkpoint and end."""
        raise NotImplementedError

    def wait(self) -> None:
        """Until the next look, or until it has ended."""
        time.sleep(LOOKS)


@dataclass
class Process(Job):
    """On this machine."""

    child: Any = None

    def poll(self) -> None:
        self.code = self.child.poll()

    def end(self) -> None:
        self.child.send_signal(signal.SIGTERM)

    def wait(self) -> None:
        with suppress(subprocess.TimeoutExpired):
            self.child.wait(LOOKS)


@dataclass
class Submitted(Job):
    """By submitit."""

    job: Any = None
    stop: Path = Path()

    def poll(self) -> None:
        if self.job.done():
            try:
                self.code = self.job.result()
            except Exception:  # submitit has several: the job was lost, or failed before its command began
                print(f"{self.run.name}: its job failed, as {self.job.paths.stderr} says.", file=sys.stderr)
                self.code = 1

    def end(self) -> None:
        self.stop.touch()
        if self.job.state == "PENDING":
            self.job.cancel(check=False)


class Jobs:
    """Runs that are started and waited for."""

    def __init__(self, places: Places, folder: Path):
        """folder: of all runs."""
        self.places, self.folder = places, folder
        self.active: list[Job] = []
        self.asked: list[int] = []
        self.announced = False
        self.executor = None if places.slurm is None else _executor(places.slurm, folder / FOLDER)

    @property
    def several(self) -> bool:
        """Whether more than one may run at a time."""
        return self.places.slurm is not None or (self.places.most or 1) > 1

    @property
    def stopped(self) -> bool:
        """Whether a signal has arrived."""
        return bool(self.asked)

    @property
    def has_room(self) -> bool:
        most = self.places.most or (1 if self.executor is None else None)
        return not self.stopped and (most is None or len(self.active) < most)

    def start(self, command: Sequence[str], run: Path) -> Job:
        """Run `command --out run`, with --resume if the run was begun."""
        command = [*command, "--out", str(run)]
        slot = min(set(range(len(self.active) + 1)) - {job.slot for job in self.active})
        if self.executor is not None:
            job = self._submit(command, run, slot)
        else:
            job = Process(run, slot, child=self._here(resumed(command, run), run, slot))
        self.active.append(job)
        return job

    def wait(self) -> list[Job]:
        """The runs that have ended, after a while."""
        if self.active:
            self.active[0].wait()
        if self.stopped and not self.announced:
            self.announced = True
            for job in self.active:
                if isinstance(job, Submitted):  # processes here have been sent the signal
                    job.end()
        for job in self.active:
            job.poll()
        ended = [job for job in self.active if job.code is not None]
        self.active = [job for job in self.active if job.code is None]
        return ended

    def _here(self, command: Sequence[str], run: Path, slot: int) -> subprocess.Popen:
        # Signals are blocked until the command can handle them (train_command unblocks them), not during its imports.
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)
        try:
            if not self.several:
                return subprocess.Popen(command)
            with open_log(run) as log, _share(slot, self.places.most or 1):
                return subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, **_gpu(slot)})
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)

    def _submit(self, command: Sequence[str], run: Path, slot: int) -> Job:
        stop = self.folder.absolute() / FOLDER / f"{run.name}.stop"
        stop.unlink(missing_ok=True)
        assert self.executor is not None
        before = {number: signal.signal(number, signal.SIG_IGN) for number in FROM_TERMINAL}  # inherited
        try:
            job = self.executor.submit(Command(tuple(command), run, stop, os.getcwd()))
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        return Submitted(run, slot, job=job, stop=stop)

    def ask(self, number: int, frame: Any) -> None:
        """Handle a signal. A terminal sends some to the processes here as well; the others are passed on."""
        self.asked.append(number)
        for job in self.active:
            if isinstance(job, Process) and number not in FROM_TERMINAL:
                job.child.send_signal(number)


@contextmanager
def running(places: Places, folder: Path) -> Iterator[Jobs]:
    """Inside, runs can be started, and signals ask them to end."""
    jobs = Jobs(places, folder)
    before = {number: signal.signal(number, jobs.ask) for number in STOPS}
    try:
        yield jobs
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def unblock_signals() -> None:
    """A run of a sweep starts with blocked signals."""
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)


# --- this machine -----------------------------------------------------------------------------------------------------


def _gpu(slot: int) -> dict[str, str]:
    """The environment in which a command sees one GPU, each of several commands another."""
    name = "CUDA_VISIBLE_DEVICES"
    visible = os.environ.get(name)
    if visible is None:
        import torch

        gpus = [str(number) for number in range(torch.cuda.device_count())]
    else:
        gpus = [gpu for gpu in visible.split(",") if gpu]
    return {name: gpus[slot % len(gpus)]} if gpus else {}


@contextmanager
def _share(slot: int, most: int) -> Iterator[None]:
    """Inside, a process is started that has its share of the cores; all, where there are fewer than processes."""
    if not hasattr(os, "sched_setaffinity") or cores() < most:
        yield
        return
    own = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(own)[slot::most])
    try:
        yield
    finally:
        os.sched_setaffinity(0, own)


# --- submitit ---------------------------------------------------------------------------------------------------------


def _executor(slurm: dict[str, str], folder: Path) -> Any:
    import submitit

    minutes = int(slurm.get("time", 60 * 24 * 365))
    executor = submitit.AutoExecutor(folder, "slurm" if slurm else "local", slurm_max_num_timeout=REQUEUED)
    others = {name: value for name, value in slurm.items() if name != "time"}
    executor.update_parameters(name="trivium", timeout_min=minutes, slurm_additional_parameters=others)
    return executor
