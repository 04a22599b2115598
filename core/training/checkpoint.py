"""Checkpoints: a directory each, written whole or not at all, and checked when read.

Only formats that hold no code are read: safetensors, JSON, and torch's own with `weights_only`.
"""

import hashlib
import json
import os
import pickle
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..errors import UserError


class Damaged(Exception):
    """A checkpoint that is not what was written; the message says which file and how."""


def save_checkpoint(
    folder: Path,
    step: int,
    weights: Mapping[str, Tensor],
    state: dict[str, Any],
    keep: int,
    score: float | None = None,
) -> Path:
    """Write folder/step-<step>, then drop all but the newest `keep` and the best.

    state: the optimiser's and the like. score: how good the model is, more is better; None if that isn't known.
    Raises OSError if it can't be written; what was there before is untouched then.
    """
    final, partial = folder / f"step-{step:08d}", folder / f".partial-{step:08d}"
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        save_file({name: tensor.contiguous() for name, tensor in weights.items()}, partial / "model.safetensors")
        torch.save(state, partial / "state.pt")
        sums = {path.name: _checksum(path) for path in sorted(partial.iterdir())}
        (partial / "step.json").write_text(json.dumps({"step": step, "score": score, "sha256": sums}))
        for path in (*partial.iterdir(), partial):
            _flush(path)
        shutil.rmtree(final, ignore_errors=True)
        os.replace(partial, final)
        _flush(folder)
    except (OSError, RuntimeError, SafetensorError) as error:  # the latter two: what torch and safetensors make of it
        shutil.rmtree(partial, ignore_errors=True)
        raise OSError(f"checkpoint {final} cannot be written: {_first_line(error)}") from error
    verify(final)  # before anything older goes
    drop_old(folder, keep)
    return final


def drop_old(folder: Path, keep: int) -> None:
    found = checkpoints(folder)
    scores = {path: score for path in found if (score := _score(path)) is not None}
    best = max(scores, key=scores.get, default=None)  # the earliest of equals
    for old in found[:-keep]:
        if old != best:
            shutil.rmtree(old)


def load_checkpoint(path: Path) -> tuple[int, dict[str, Tensor], dict[str, Any]]:
    """The step, the weights, and the state saved with them."""
    step = verify(path)
    try:
        state = torch.load(path / "state.pt", map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError) as error:
        raise Damaged(f"{path / 'state.pt'} is refused, it holds more than tensors: {_first_line(error)}") from None
    return step, load_file(path / "model.safetensors"), state


def verify(path: Path) -> int:
    """The step of a checkpoint that is as it was written."""
    try:
        record = json.loads((path / "step.json").read_text())
        step, sums = record["step"], record["sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        raise Damaged(f"{path / 'step.json'} cannot be read") from None
    for name in ("model.safetensors", "state.pt"):
        try:
            same = _checksum(path / name) == sums.get(name)
        except OSError as error:
            raise Damaged(f"{path / name} cannot be read: {error.strerror}") from None
        if not same:
            raise Damaged(f"{path / name} is not what was written")
    return step


def newest_healthy(folder: Path) -> tuple[Path | None, list[str]]:
    """The newest checkpoint that is whole, and what is wrong with those that are newer."""
    problems = []
    for path in reversed(checkpoints(folder)):
        try:
            verify(path)
            return path, problems
        except Damaged as damage:
            problems.append(str(damage))
    if problems:
        raise UserError(f"No checkpoint in {folder} is whole: {problems[0]}. Start the run anew in another directory.")
    return None, []


def checkpoints(folder: Path) -> list[Path]:
    """Checkpoints, oldest first."""
    return sorted(folder.glob("step-*"))


def _score(path: Path) -> float | None:
    try:
        return json.loads((path / "step.json").read_text()).get("score")
    except (OSError, ValueError):
        return None


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flush(path: Path) -> None:
    """To the disk itself: a rename must not overtake what it names."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
