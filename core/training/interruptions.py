"""What can end a run early: a signal, or the death of a process that loads data."""

import multiprocessing
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from ..errors import UserError
from ..files import reason
from ..private_torch import loading_processes, shut_down_workers

# Ctrl-C; what `timeout`, Slurm and systemd send; a closed terminal; Slurm's warning of the time limit.
STOPS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1") if hasattr(signal, name))
TWICE = 1.0  # seconds: a signal sent to a process and to its group comes twice, at once


@contextmanager
def dead_workers_explained(
    advice: str = "go on from the last checkpoint with --resume and fewer --train.workers",
) -> Iterator[None]:
    """Inside, batches are fetched: the death of a loading process becomes a UserError."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        chain: list[BaseException] = [error]
        while cause := chain[-1].__cause__ or chain[-1].__context__:
            chain.append(cause)
        if not any("DataLoader worker (pid" in str(e) or isinstance(e, ConnectionError | EOFError) for e in chain):
            raise
        raise UserError(f"A data loading process died, perhaps for want of memory: {advice}.") from None


@contextmanager
def deaths_unreported() -> Iterator[None]:
    """Inside, loading processes are started. If one dies, fetching the next batch raises an error.

    torch would raise it at once, even while the main process is changing the weights.
    """
    before = signal.getsignal(signal.SIGCHLD) if hasattr(signal, "SIGCHLD") else None
    yield
    if before is not None:
        with suppress(ValueError):  # not in the main thread, where torch changes nothing either
            signal.signal(signal.SIGCHLD, before)


@contextmanager
def failed_starts_explained(option: str = "--train.workers") -> Iterator[None]:
    """Inside, loading processes are started: all of them, or none and a UserError."""
    others = set(multiprocessing.active_children())
    try:
        yield
    except BaseException as error:
        for worker in set(multiprocessing.active_children()) - others:
            worker.kill()  # it ignores gentler signals, and Python would wait for it at the end
            worker.join()
        hook, sys.unraisablehook = sys.unraisablehook, lambda _: None  # of torch's iterator, which is half made
        traceback.clear_frames(error.__traceback__)
        sys.unraisablehook = hook
        if isinstance(error, OSError):
            raise UserError(
                f"The data loading processes cannot be started ({reason(error)}): choose fewer {option}."
            ) from None
        raise


def ignore_stops() -> None:
    """Called in a loading process: signals often go to the whole group, and the main process handles them."""
    for number in STOPS:
        signal.signal(number, signal.SIG_IGN)


def end_workers(batches: Iterator) -> None:
    """End the processes that load data, the dead and those that hang among them."""
    with suppress(RuntimeError):  # for a dead one
        shut_down_workers(batches)
    for worker in loading_processes(batches):
        if worker.is_alive():  # it ignores what torch ends it with
            worker.kill()


@contextmanager
def stop_on_signal() -> Iterator[Callable[[], bool]]:
    """Inside, a signal asks for a stop after the current step; the same signal again stops at once.

    Gives a function that says whether a stop was asked for.
    """
    asked: dict[int, float] = {}

    def ask(number: int, frame: object) -> None:
        again = number in asked and (number == signal.SIGINT or time.monotonic() - asked[number] > TWICE)
        asked.setdefault(number, time.monotonic())
        if again:
            _end(number)

    with _handled(ask):
        yield lambda: bool(asked)


@contextmanager
def end_on_signal() -> Iterator[None]:
    """Inside, signals end the process by an exception, so that clean-up code runs."""
    with _handled(lambda number, frame: _end(number)):
        yield


def _end(number: int) -> None:
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    sys.exit(128 + number)


@contextmanager
def _handled(handler: Callable) -> Iterator[None]:
    before = {}
    with suppress(ValueError):  # not in the main thread: nobody to ask
        for number in STOPS:
            if signal.getsignal(number) is not signal.SIG_IGN or number == signal.SIGINT:  # nohup ignores SIGHUP
                before[number] = signal.signal(number, handler)
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)
