"""The command of a run, as a job of submitit calls it.

A job loads this module beside the command that it starts, so it imports no more than Python's own library.
"""

import os
import signal
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LOG = "log.txt"
LOOKS = 0.5  # seconds between looks at a run


@dataclass
class Command:
    """What submitit calls: the command of a run, which ends when the file `stop` is there."""

    command: tuple[str, ...]
    run: Path
    stop: Path
    directory: str
    child: Any = None

    def __call__(self) -> int:
        """The exit code."""
        os.chdir(self.directory)
        if self.stop.exists():
            return 130
        with open_log(self.run) as log:  # in a session of its own: it gets no signal but ours
            self.child = subprocess.Popen(
                resumed(self.command, self.run), stdout=log, stderr=log, start_new_session=True
            )
        while True:
            with suppress(subprocess.TimeoutExpired):
                return self.child.wait(LOOKS)
            if self.stop.exists():
                return self._end()

    def checkpoint(self) -> Any:
        """Slurm needs the node, or the time has ended: the run goes on later."""
        import submitit

        if self.child is not None:
            self._end()
        return submitit.helpers.DelayedSubmission(Command(self.command, self.run, self.stop, self.directory))

    def _end(self) -> int:
        self.child.send_signal(signal.SIGTERM)
        return self.child.wait()


def resumed(command: Sequence[str], run: Path) -> list[str]:
    """The command, with --resume if its run was begun."""
    return [*command, *(["--resume"] if (run / "config.json").exists() else [])]


def open_log(run: Path) -> Any:
    run.mkdir(parents=True, exist_ok=True)
    return (run / LOG).open("a")
