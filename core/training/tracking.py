"""The metrics of a run (metrics.jsonl, TensorBoard, other trackers and its progress), and the environment that they
depend on."""

import errno
import json
import os
import platform
import re
import subprocess
import threading
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any, NotRequired

from pydantic import ConfigDict, TypeAdapter, with_config
from typing_extensions import TypedDict

from ..config import Natural
from ..errors import UserError
from ..files import flush, read_bytes, reason, write_text
from .progress import Progress
from .trackers import ReportedRun


class Tracker:
    """Writes the metrics of a run to metrics.jsonl, TensorBoard and other trackers, and shows its progress.

    logged: the step of the checkpoint that a run resumes from; later rows are dropped, since their steps are repeated.
    enabled: only in the main process. quiet: show no progress. others: the run in other trackers.
    """

    def __init__(
        self,
        run: Path,
        first_step: int,
        steps: int,
        logged: int,
        enabled: bool = True,
        quiet: bool = False,
        others: Sequence[ReportedRun] = (),
    ):
        self.enabled, self.path, self.others = enabled, run / "metrics.jsonl", others
        if not enabled:
            return
        from torch.utils.tensorboard import SummaryWriter

        rows = [row for row in read_metrics(run) if row["step"] <= logged]
        self.before: str | None = "".join(json.dumps(row) + "\n" for row in rows)  # written with the first new row
        self.unwritten = ""  # rows that could not be written yet
        self.writer, self.excepthook = None, threading.excepthook
        threading.excepthook = self._in_thread
        self._to_tensorboard(lambda: self._open(SummaryWriter, run, first_step))
        self.progress = Progress(run.name, steps, "step", first_step, quiet)

    def _open(self, kind: type, run: Path, first_step: int) -> None:
        self.writer = kind(str(run / "tensorboard"), purge_step=first_step + 1 if first_step else None)

    def advance(self, loss: float, lr: float) -> None:
        if self.enabled:
            self.progress.advance(loss=f"{loss:.4f}", lr=f"{lr:.1e}")

    def log(self, step: int, metrics: dict[str, Any]) -> None:
        if not self.enabled:
            return
        self.unwritten += json.dumps({"step": step, **metrics}) + "\n"
        self._write()
        for name, value in metrics.items():
            if isinstance(value, float | int) and self.writer is not None:
                self._to_tensorboard(partial(self.writer.add_scalar, name, value, step))
        for other in self.others:
            other.log(step, metrics)

    def _write(self) -> None:
        """Write all rows or none; rows that cannot be written now are written with the next ones."""
        if not self.unwritten:
            return
        try:
            if self.before is not None:
                write_text(self.path, self.before + self.unwritten)
                self.before = None
            else:
                self._append(self.unwritten.encode())
            self.unwritten = ""
        except OSError as error:
            self.say(f"{self.path} cannot be written: {reason(error)}. Its rows are kept until they can be written.")

    def _append(self, rows: bytes) -> None:
        with self.path.open("ab", buffering=0) as file:
            size = file.tell()
            try:
                if file.write(rows) < len(rows):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            except OSError:
                file.truncate(size)
                raise

    def _to_tensorboard(self, write: Callable[[], None]) -> None:
        try:
            write()
        except OSError as error:
            self.writer = None
            warnings.warn(
                f"TensorBoard's events cannot be written: {reason(error)}. Training goes on without them.", stacklevel=2
            )

    def _in_thread(self, error: threading.ExceptHookArgs) -> None:
        """TensorBoard writes in a thread of its own; `add_scalar` raises the errors of that thread again."""
        if not issubclass(error.exc_type, OSError):
            self.excepthook(error)

    def say(self, text: str) -> None:
        if self.enabled:
            self.progress.say(text)

    def flush(self) -> None:
        """Write to the disk itself, so that the rows of a step are there before its checkpoint is."""
        if self.enabled:
            self._write()
            if self.path.exists():
                flush(self.path)

    def close(self) -> None:
        if self.enabled:
            self._write()
            if self.writer is not None:
                self._to_tensorboard(self.writer.close)
            for other in self.others:
                other.finish()
            threading.excepthook = self.excepthook
            self.progress.close()


@with_config(ConfigDict(extra="allow", strict=True))
class Row(TypedDict):
    """A row of metrics.jsonl: a step, and values by their names."""

    step: Natural
    alarms: NotRequired[list[str]]


ROW = TypeAdapter(Row)


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl; a last row that a crash cut short is dropped."""
    path = run / "metrics.jsonl"
    if not path.exists():
        return []
    rows = []
    lines = read_bytes(path).split(b"\n")
    for number, line in enumerate(lines, 1):
        try:
            row = ROW.validate_python(json.loads(line))
            for name, value in row.items():
                if name != "alarms" and (isinstance(value, bool) or not isinstance(value, int | float)):
                    raise ValueError(f"{name} is no number")
        except (ValueError, RecursionError):
            if number == len(lines):  # a crash cut it short
                break
            raise UserError(f"{path}, row {number} is not a row of metrics: correct it, or remove the file.") from None
        rows.append(row)
    return rows


def environment() -> dict[str, Any]:
    """What results depend on, besides the configuration."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": _versions(),
        "commit": _git_commit(),
    }


def _versions() -> dict[str, str]:
    """Those of this package and of the packages that it requires."""
    found = {}
    for line in ("trivium", *(requires("trivium") or ())):
        name = re.split(r"[^\w.-]", line)[0]
        if "extra ==" not in line:
            with suppress(PackageNotFoundError):  # one that this platform does not need
                found[name] = version(name)
    return found


def _git_commit() -> str | None:
    """The commit of the source tree, marked if files differ from it; None outside a checkout."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        changed = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, check=True).stdout
        return f"{commit}{' (with changes)' if changed else ''}"
    except (OSError, subprocess.CalledProcessError):
        return None
