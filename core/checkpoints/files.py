"""Weights are read from files of several formats, and freed of the prefixes of wrappers."""

import pickle
import re
from argparse import Namespace
from collections.abc import Collection, Mapping, Sequence
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
"""Names of files of weights in a directory, the preferred one first."""
NESTED = ("state_dict_ema", "model_ema", "state_dict", "model_state_dict", "model", "module")
"""Entries of a training checkpoint that may hold the weights; averaged weights first, as in timm."""
PREFIXES = ("module.", "model.", "backbone.", "net.", "timm_model.")
"""Prefixes from DistributedDataParallel, training scripts, and the wrapper of timm in transformers."""
POINTER = b"version https://git-lfs"
"""What a file begins with that Git LFS leaves in place of a large one."""
WRAPPERS = r"\b(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\."
"""Prefixes from torch.compile, FSDP and activation checkpointing; they may stand inside a key."""


def read_state(folder: Path, names: Sequence[str] = FILES) -> dict[str, Any]:
    """The content of a directory's file of weights, or of all files that an index names.

    names: of files of weights, the preferred one first.
    """
    for name in names:
        if (folder / name).exists():
            return read_file(folder / name)
        if (index := folder / f"{name}.index.json").exists():
            parts = read_json(index).get("weight_map")
            if not isinstance(parts, dict) or not parts or not all(isinstance(part, str) for part in parts.values()):
                raise UserError(f"{index} names no files of weights.")
            files = {part: read_file(folder / part) for part in sorted(set(parts.values()))}
            return {key: file[key] for part, file in files.items() for key in file if parts.get(key, part) == part}
    raise UserError(f"{folder} holds no weights: it has neither {' nor '.join(names)}.")


def read_file(path: Path) -> dict[str, Any]:
    """The content of a file of weights. Code in a file of pickle's format is not run."""
    check_file(path, "file of weights")
    try:
        with path.open("rb") as file:  # safetensors says of a file that may not be read that there is none
            start = file.read(len(POINTER))
        if start == POINTER:
            raise UserError(
                f"{path} is a pointer of Git LFS, and not the weights: run git lfs pull, or download the file."
            )
        if path.suffix == ".safetensors":
            return load_file(path, backend="pread")  # not mapped: the file may change later
        with torch.serialization.safe_globals([Namespace]):  # training scripts save their options beside the weights
            content = torch.load(path, map_location="cpu", weights_only=True)
    except UserError:
        raise
    except pickle.UnpicklingError:
        raise UserError(
            f"{path} is damaged, or holds Python objects that could run code when they are read: save the model's "
            "state_dict() alone."
        ) from None
    except Exception as error:  # damaged files raise many kinds
        raise UserError(f"{path} cannot be read: {first_line(error)}.") from None
    if not isinstance(content, Mapping):
        raise UserError(f"{path} holds a {type(content).__name__}, not a model's state_dict().")
    return dict(content)


def plain_state(checkpoint: Mapping[str, Any], wanted: Collection[str]) -> dict[str, Shaped[Tensor, "..."]]:
    """The weights in a checkpoint, under keys without the prefixes of wrappers.

    wanted: the keys that are expected; a key that is among them keeps its prefix.
    """
    while name := next((name for name in NESTED if isinstance(checkpoint.get(name), Mapping)), None):
        checkpoint = checkpoint[name]
    if not checkpoint:
        raise WeightsError("The checkpoint holds no weights: it is empty")
    if others := [str(key) for key, value in checkpoint.items() if not _is_plain(key, value)]:
        raise WeightsError(f"The checkpoint holds no weights, but: {', '.join(others)}")
    state: dict[str, Tensor] = {}
    for key, tensor in checkpoint.items():
        if key == "n_averaged":  # a counter of AveragedModel
            continue
        plain = key if key in wanted else _plain_key(key, wanted)
        if plain in state:
            raise WeightsError(f"The checkpoint holds two tensors for {plain}, under different prefixes")
        state[plain] = tensor
    return state


def _is_plain(key: Any, value: Any) -> bool:
    """Whether this is a name and a tensor that holds each of its values."""
    named = isinstance(key, str) and isinstance(value, Tensor)
    return named and value.layout == torch.strided and not (value.is_nested or value.is_quantized or value.is_meta)


def _plain_key(key: str, wanted: Collection[str]) -> str:
    key = re.sub(WRAPPERS, "", key)
    while key not in wanted and (prefix := next((p for p in PREFIXES if key.startswith(p)), None)):
        key = key.removeprefix(prefix)
    return key
