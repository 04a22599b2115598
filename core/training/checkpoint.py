"""Checkpoints: saved whole or not at all, checked when read; and which of them are kept, the newest and the best.

Only formats that hold no code are read: safetensors, JSON, and torch's own with `weights_only`.
"""

import hashlib
import pickle
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NotRequired

import torch
from pydantic import ConfigDict, TypeAdapter, ValidationError, with_config
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from typing_extensions import TypedDict

from ..errors import UserError
from ..files import first_line, read_json, reason, replacing_folder, write_json
from .patience import Waiting

FILES = ("model.safetensors", "state.pt")


class Damaged(Exception):
    """A checkpoint is not as it was written; the message names the file and the damage."""


class Record(TypedDict):
    """step.json: the description of a checkpoint."""

    step: int
    score: float | None
    """The primary metric on the validation set, more is better; None if it was not evaluated."""
    run: NotRequired[str]
    """The id of its run."""
    sha256: dict[str, str]
    """The checksum of each file."""


@with_config(ConfigDict(arbitrary_types_allowed=True))
class State(TypedDict):
    """state.pt: all that a run needs to continue, besides the weights."""

    optimizer: dict[str, dict[str, Tensor]]
    samples: NotRequired[int]
    """To train on; older checkpoints do not say it."""
    lr_factor: float
    skipped_steps: int
    monitor: dict[str, Any]
    average: NotRequired[dict[str, Tensor]]
    scaler: NotRequired[dict[str, Any]]
    patience: NotRequired[Waiting]
    pending_row: NotRequired[dict[str, Any]]
    """The row of the step, if a signal interrupted its evaluation."""


STATE = TypeAdapter(State)


def save_checkpoint(
    folder: Path,
    step: int,
    weights: Mapping[str, Tensor],
    state: State,
    keep: int,
    score: float | None = None,
    run: str = "",
) -> Path:
    """Write folder/step-<step>, then remove the run's other checkpoints except for the newest `keep` and the best.

    run: the id of the run. Raises OSError if the checkpoint cannot be written; nothing else is changed then.
    """
    path = folder / f"step-{step:08d}"
    try:
        with replacing_folder(path) as partial:
            save_file({name: tensor.contiguous() for name, tensor in weights.items()}, partial / "model.safetensors")
            torch.save(state, partial / "state.pt")
            sums = {name: _checksum(partial / name) for name in FILES}
            write_json(partial / "step.json", {"step": step, "score": score, "run": run, "sha256": sums})
    except OSError as error:
        raise OSError(error.errno, reason(error), str(path)) from error
    read_record(path)  # before anything older goes
    drop_old(folder, keep, run)
    return path


def drop_old(folder: Path, keep: int, run: str = "") -> None:
    """Damaged checkpoints do not count, and those of other runs are left alone."""
    whole = _whole(folder, run)
    best = _best(whole)
    for old, _ in whole[:-keep]:
        if old != best:
            shutil.rmtree(old)


def best_whole(folder: Path, run: str) -> Path | None:
    """The undamaged checkpoint of a run that has the best score; None if none has a score."""
    return _best(_whole(folder, run))


def _whole(folder: Path, run: str) -> list[tuple[Path, Record]]:
    """The undamaged checkpoints of a run, the oldest first."""
    whole = []
    for path in checkpoints(folder):
        try:
            record = read_record(path)
        except Damaged:
            continue
        if record.get("run", "") == run:
            whole.append((path, record))
    return whole


def _best(whole: Sequence[tuple[Path, Record]]) -> Path | None:
    scores = {path: record["score"] for path, record in whole if record["score"] is not None}
    return max(scores, key=scores.__getitem__, default=None)  # the earliest of equals


def load_checkpoint(path: Path) -> tuple[int, dict[str, Tensor], State]:
    """The step, the weights, and the state that was saved with them."""
    step = read_record(path)["step"]
    try:
        state = torch.load(path / "state.pt", map_location="cpu", weights_only=True)
        weights = load_file(path / "model.safetensors")
    except (pickle.UnpicklingError, RuntimeError, EOFError, SafetensorError) as error:
        raise Damaged(f"{path / 'state.pt'} is refused, it holds more than tensors: {first_line(error)}") from None
    try:
        return step, weights, STATE.validate_python(state)
    except ValidationError as error:
        place = ".".join(str(part) for part in error.errors()[0]["loc"])
        raise Damaged(f"{path / 'state.pt'} is not what was written ({place})") from None


def read_record(path: Path) -> Record:
    """step.json of a checkpoint, whose files are verified."""
    try:
        record = read_json(path / "step.json", Record)
    except UserError as error:
        raise Damaged(f"{path / 'step.json'} cannot be read ({str(error).rstrip('.')})") from None
    if path.name != f"step-{record['step']:08d}":
        raise Damaged(f"{path / 'step.json'} says step {record['step']}, which is another checkpoint's")
    for name in FILES:
        try:
            same = _checksum(path / name) == record["sha256"].get(name)
        except OSError as error:
            raise Damaged(f"{path / name} cannot be read: {error.strerror}") from None
        if not same:
            raise Damaged(f"{path / name} is not what was written")
    return record


def newest_whole(folder: Path, run: str = "") -> tuple[Path | None, list[str]]:
    """The newest undamaged checkpoint of a run, and the damage of those that are newer."""
    problems = []
    for path in reversed(checkpoints(folder)):
        try:
            if read_record(path).get("run", "") == run:
                return path, problems
        except Damaged as damage:
            problems.append(str(damage))
    if problems:
        raise UserError(f"No checkpoint in {folder} is whole: {problems[0]}. Start the run anew in another directory.")
    return None, []


def has_checkpoint(folder: Path, run: str) -> bool:
    """Whether a run has a checkpoint, damaged or not."""
    for path in checkpoints(folder):
        try:
            if read_record(path).get("run", "") == run:
                return True
        except Damaged:
            return True
    return False


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of all runs, the oldest first."""
    return sorted(folder.glob("step-*"))


_known: dict[tuple[Any, ...], str] = {}  # a file that has not changed since is not read again


def _checksum(path: Path) -> str:
    status = path.stat()
    key = str(path), status.st_ino, status.st_size, status.st_mtime_ns
    if key not in _known:
        with path.open("rb") as file:
            _known[key] = hashlib.file_digest(file, "sha256").hexdigest()
    return _known[key]
