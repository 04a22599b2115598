"""What may end a run early: a signal, or the death of a process that loads data."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from ..errors import UserError


@contextmanager
def dead_workers_explained():
    """A loading process that dies raises an error wherever the main process stands, in whatever it was doing."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        chain = [error]
        while chain[-1].__cause__ or chain[-1].__context__:
            chain.append(chain[-1].__cause__ or chain[-1].__context__)
        if not any("DataLoader worker (pid" in str(e) or isinstance(e, ConnectionError | EOFError) for e in chain):
            raise
        raise UserError(
            "A data loading process died, perhaps for want of memory: go on from the last checkpoint with --resume and "
            "fewer --train.workers."
        ) from None


def end_workers(batches: Iterator) -> None:
    """End the processes that load data, the dead among them: torch would go on to raise errors for those."""
    if end := getattr(batches, "_shutdown_workers", None):
        with suppress(RuntimeError):  # for a dead one
            end()


@contextmanager
def stop_on_signal():
    """Inside, SIGINT and SIGTERM ask to stop after the current step; a second Ctrl-C stops at once."""
    asked = []

    def ask(number, frame):
        asked.append(number)
        signal.signal(signal.SIGINT, before[signal.SIGINT])  # SIGTERM is often sent twice, to a process and its group

    before = {}
    try:
        for name in (signal.SIGINT, signal.SIGTERM):
            before[name] = signal.signal(name, ask)
    except ValueError:  # not in the main thread: nobody to ask
        pass
    try:
        yield lambda: bool(asked)
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)
