"""A run is a directory: config.json, metrics.jsonl, summary.json, checkpoints/, model/, report.html, tensorboard/."""

import json
import platform
import subprocess
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
        self.path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        self.writer = SummaryWriter(str(run / "tensorboard"), purge_step=first_step + 1 if first_step else None)
        self.bar = tqdm(total=steps, initial=first_step, unit="step", dynamic_ncols=True, desc=run.name)

    def advance(self, loss: float, lr: float) -> None:
        if self.enabled:
            self.bar.set_postfix(loss=f"{loss:.4f}", lr=f"{lr:.1e}", refresh=False)
            self.bar.update()

    def log(self, step: int, metrics: dict[str, Any]) -> None:
        if not self.enabled:
            return
        with self.path.open("a") as file:
            file.write(json.dumps({"step": step, **metrics}) + "\n")
        for name, value in metrics.items():
            if isinstance(value, float | int):
                self.writer.add_scalar(name, value, step)

    def say(self, text: str) -> None:
        if self.enabled:
            self.bar.write(text)

    def close(self) -> None:
        if self.enabled:
            self.bar.close()
            self.writer.close()


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
