"""Checkpoints: a directory each, written whole or not at all."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_model, save_model
from torch import nn


def save_checkpoint(folder: Path, step: int, model: nn.Module, state: dict[str, Any], keep: int) -> Path:
    """Write folder/step-<step>, then drop all but the newest `keep`. `state` is the optimiser's and the like."""
    final, partial = folder / f"step-{step:08d}", folder / f".partial-{step:08d}"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    save_model(model, str(partial / "model.safetensors"))
    torch.save(state, partial / "state.pt")
    (partial / "step.json").write_text(json.dumps({"step": step}))
    shutil.rmtree(final, ignore_errors=True)
    os.replace(partial, final)
    for old in checkpoints(folder)[:-keep]:
        shutil.rmtree(old)
    return final


def load_checkpoint(path: Path, model: nn.Module) -> tuple[int, dict[str, Any]]:
    """Fill `model`; return the step and the state saved with it. Runs no code from the checkpoint."""
    load_model(model, str(path / "model.safetensors"))
    state = torch.load(path / "state.pt", map_location="cpu", weights_only=True)
    return json.loads((path / "step.json").read_text())["step"], state


def checkpoints(folder: Path) -> list[Path]:
    """Whole checkpoints, oldest first."""
    return sorted(folder.glob("step-*"))
