"""A run is a directory: config.json, metrics.jsonl, summary.json, checkpoints/, model/, report.html, tensorboard/."""

import errno
import json
import os
import platform
import subprocess
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ..errors import UserError


def new_run(out: Path | None, experiment: str) -> Path:
    """The directory of a run that starts: `out`, which must hold no run, or the next free runs/<experiment>[-2...]."""
    if out is not None:
        if out.exists() and not out.is_dir():
            raise UserError(f"--out {out} is a file: choose a directory.")
        if (out / "config.json").exists():
            raise UserError(f"{out} already holds a run: choose another --out, or go on with it by --resume.")
        return out
    number = 1
    while (path := _numbered(experiment, number)).exists():
        number += 1
    return path


def old_run(out: Path | None, experiment: str) -> Path:
    """The directory of a run to go on with: `out`, or the newest runs/<experiment>[-2...]."""
    if out is None:
        number = 1
        while _numbered(experiment, number + 1).exists():
            number += 1
        out = _numbered(experiment, number)
    if not (out / "config.json").is_file():
        raise UserError(f"{out} holds no run to resume: name its directory with --out, or start one without --resume.")
    return out


def _numbered(experiment: str, number: int) -> Path:
    return Path("runs") / (experiment if number == 1 else f"{experiment}-{number}")


class Tracker:
    """Where a run's figures go: metrics.jsonl, TensorBoard, and a progress bar with loss, rate and time left.

    Only the main process has an `enabled` one.
    """

    def __init__(self, run: Path, first_step: int, steps: int, enabled: bool = True):
        self.enabled, self.path = enabled, run / "metrics.jsonl"
        if not enabled:
            return
        from torch.utils.tensorboard import SummaryWriter

        # A resumed run repeats what came after its checkpoint.
        rows = [row for row in read_metrics(run) if row["step"] <= first_step]
        try:
            self.path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        except OSError as error:
            raise UserError(f"{self.path} cannot be written: {error.strerror}.") from None
        self.unwritten = ""  # rows that found no room
        self.writer = SummaryWriter(str(run / "tensorboard"), purge_step=first_step + 1 if first_step else None)
        self.bar = tqdm(total=steps, initial=first_step, unit="step", dynamic_ncols=True, desc=run.name)

    def advance(self, loss: float, lr: float) -> None:
        if self.enabled:
            self.bar.set_postfix(loss=f"{loss:.4f}", lr=f"{lr:.1e}", refresh=False)
            self.bar.update()

    def log(self, step: int, metrics: dict[str, Any]) -> None:
        if not self.enabled:
            return
        self.unwritten += json.dumps({"step": step, **metrics}) + "\n"
        self._write()
        for name, value in metrics.items():
            if isinstance(value, float | int):
                self._to_tensorboard(lambda name=name, value=value: self.writer.add_scalar(name, value, step))

    def _write(self) -> None:
        """All rows or none: what finds no room now goes with the next."""
        if not self.unwritten:
            return
        with self.path.open("ab", buffering=0) as file:
            size = file.tell()
            try:
                if file.write(self.unwritten.encode()) < len(self.unwritten.encode()):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                self.unwritten = ""
            except OSError as error:
                file.truncate(size)
                self.say(f"{self.path} cannot be written: {error.strerror}. Its rows wait for room.")

    def _to_tensorboard(self, write: Callable[[], None]) -> None:
        if self.writer is None:
            return
        try:
            write()
        except OSError as error:
            self.writer = None
            self.say(f"TensorBoard's events cannot be written: {error.strerror}. Training goes on without them.")

    def say(self, text: str) -> None:
        if self.enabled:
            self.bar.write(text)

    def close(self) -> None:
        if self.enabled:
            self._write()
            self._to_tensorboard(lambda: self.writer.close())
            self.bar.close()


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl; a row cut short by a crash is dropped."""
    rows = []
    path = run / "metrics.jsonl"
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


def environment() -> dict[str, Any]:
    """What a figure depends on besides the config."""
    packages = ("trivium", "torch", "torchvision", "torchaudio", "timm", "tokenizers", "accelerate")
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": {name: version(name) for name in packages},
        "commit": _git_commit(),
    }


def _git_commit() -> str | None:
    """The commit of the source tree, marked if files differ from it; None outside a checkout."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        changed = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, check=True).stdout
        return f"{commit}{' (with changes)' if changed else ''}"
    except (OSError, subprocess.CalledProcessError):
        return None
