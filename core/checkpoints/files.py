"""Weights read from files, under the keys of the bare model whatever wrapped it when it was saved."""

import pickle
import re
from argparse import Namespace
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Shaped
from safetensors.torch import load_file
from torch import Tensor

from ..errors import UserError
from ..files import check_file, first_line, read_json
from .keys import WeightsError

FILES = ("model.safetensors", "pytorch_model.bin")
"""The files of weights that a directory may hold, the preferred one first."""
NESTED = ("state_dict_ema", "model_ema", "state_dict", "model_state_dict", "model", "module")
"""Under which of its entries a training script's checkpoint keeps the weights; averaged ones first, as in timm."""
PREFIXES = ("module.", "model.", "backbone.", "net.", "timm_model.")
"""What DistributedDataParallel, training scripts and transformers' wrapper of timm put before a model's own keys."""
WRAPPERS = r"\b(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\."
"""What torch.compile, FSDP and activation checkpointing put before the keys of the part that they wrap."""


def read_state(folder: Path) -> dict[str, Any]:
    """What the file of weights in a directory holds, or the several files that an index names."""
    for name in FILES:
        if (folder / name).exists():
            return read_file(folder / name)
        if (index := folder / f"{name}.index.json").exists():
            parts = read_json(index).get("weight_map")
            if not isinstance(parts, dict) or not parts:
                raise UserError(f"{index} names no files of weights.")
            files = [read_file(folder / str(part)) for part in sorted(set(parts.values()))]
            return {key: value for file in files for key, value in file.items()}
    raise UserError(f"{folder} holds no weights: it has neither {' nor '.join(FILES)}.")


def read_file(path: Path) -> dict[str, Any]:
    """The weights in a file. No code is run, whatever a file in pickle's format asks for."""
    check_file(path, "file of weights")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with torch.serialization.safe_globals([Namespace]):  # the options that training scripts put beside the weights
            found = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise UserError(
            f"{path} is damaged, or holds Python objects that could run code when they are read: save the model's "
            "state_dict() alone."
        ) from None
    except Exception as error:  # a damaged file raises one of many
        raise UserError(f"{path} cannot be read: {first_line(error)}.") from None
    if not isinstance(found, Mapping):
        raise UserError(f"{path} holds a {type(found).__name__}, not a model's state_dict().")
    return dict(found)


def plain_state(checkpoint: Mapping[str, Any], wanted: Collection[str]) -> dict[str, Shaped[Tensor, "..."]]:
    """The weights in a checkpoint under the keys of the bare model, whatever wrapped it when it was saved.

    wanted: the keys that are expected; where a key is one of them, its prefix belongs to it.
    """
    while name := next((name for name in NESTED if isinstance(checkpoint.get(name), Mapping)), None):
        checkpoint = checkpoint[name]
    if not checkpoint:
        raise WeightsError("The checkpoint holds no weights: it is empty")
    if others := [str(key) for key, value in checkpoint.items() if not isinstance(value, Tensor)]:
        raise WeightsError(f"The checkpoint holds no weights that can be found, but: {', '.join(others)}")
    state: dict[str, Tensor] = {}
    for key, tensor in checkpoint.items():
        if key == "n_averaged":  # AveragedModel's count
            continue
        plain = key if key in wanted else _plain_key(key, wanted)
        if plain in state:
            raise WeightsError(f"The checkpoint holds two tensors for {plain}, under different prefixes")
        state[plain] = tensor
    return state


def _plain_key(key: str, wanted: Collection[str]) -> str:
    key = re.sub(WRAPPERS, "", key)
    while key not in wanted and (prefix := next((p for p in PREFIXES if key.startswith(p)), None)):
        key = key.removeprefix(prefix)
    return key
