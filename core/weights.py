"""Checkpoints read from files, and loaded into our models through a key map that accounts for every key.

KEYS = {
    "norm.{p}": "encoder.final_norm.{p}",                               # renamed
    "blocks.{i}.fc1.{p}": "encoder.blocks.{i}.mlp.up.{p}",              # {i}: a number, {p}: the last part
    ("{i}.q.{p}", "{i}.k.{p}", "{i}.v.{p}"): "blocks.{i}.qkv.{p}",      # joined along the first axis
    "cls_token": Move("embed.class_token", lambda t: t[0]),             # changed on the way
    "pooler.{p}": None,                                                 # known, and not wanted
}
"""

import pickle
import re
from argparse import Namespace
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Shaped
from safetensors.torch import load_file
from torch import Tensor, nn

from .errors import UserError
from .files import check_file, first_line, read_json

State = Mapping[str, Shaped[Tensor, "..."]]


@dataclass(frozen=True)
class Move:
    """A target key, and what the source tensors become on the way there."""

    to: str
    change: Callable[..., Tensor] = lambda *tensors: torch.cat(tensors)


FILES = ("model.safetensors", "pytorch_model.bin")
"""The files of weights that a directory may hold, the preferred one first."""
NESTED = ("state_dict_ema", "model_ema", "state_dict", "model_state_dict", "model", "module")
"""Under which of its entries a training script's checkpoint keeps the weights; averaged ones first, as in timm."""
PREFIXES = ("module.", "model.", "backbone.", "net.", "timm_model.")
"""What DistributedDataParallel, training scripts and transformers' wrapper of timm put before a model's own keys."""
WRAPPERS = r"\b(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\."
"""What torch.compile, FSDP and activation checkpointing put before the keys of the part that they wrap."""

KeyMap = Mapping[str | tuple[str, ...], str | Move | None]


class WeightsError(UserError, ValueError):
    """A checkpoint and a model that do not fit: names every key at fault."""


def convert(state: State, key_map: KeyMap) -> dict[str, Shaped[Tensor, "..."]]:
    """`state` under our keys. A key that no rule covers, or a join that lacks a part, is an error that names it."""
    converted, covered, faults = {}, set(), []
    for sources, target in key_map.items():
        sources = (sources,) if isinstance(sources, str) else sources
        move = Move(target) if isinstance(target, str) else target
        for key in state:
            found = key_pattern(sources[0]).fullmatch(key)
            if not found:
                continue
            keys = [source.format(**found.groupdict()) for source in sources]
            if absent := [k for k in keys if k not in state]:
                faults.append(f"missing beside {key}: {', '.join(absent)}")
                continue
            covered.update(keys)
            if move is not None:
                tensors = [state[k] for k in keys]
                # A plain rename keeps the tensor itself (and scalars, which cannot be joined).
                change = (lambda t: t) if len(keys) == 1 and isinstance(target, str) else move.change
                try:
                    converted[move.to.format(**found.groupdict())] = change(*tensors)
                except (RuntimeError, IndexError):  # IndexError: of a number where there should be a table
                    shapes = (f"{key} {tuple(tensor.shape)}" for key, tensor in zip(keys, tensors, strict=True))
                    faults.append(f"of shapes that do not fit: {', '.join(shapes)}")
    faults += [f"no rule for: {key}" for key in state if key not in covered]
    if faults:
        raise WeightsError("The checkpoint holds keys that the key map does not account for; " + "; ".join(faults))
    return converted


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


def load(model: nn.Module, weights: State, fresh: Iterable[str] = ()) -> None:
    """Load `weights` (already under our keys) into `model`; every key must be there and fit.

    fresh: prefixes of keys that may be missing and keep their initial values (a new head).
    Of parameters that are one and the same, one key is enough.
    """
    wanted, fresh = model.state_dict(), tuple(fresh)
    parameters = dict(model.named_parameters(remove_duplicate=False))
    given = {id(parameters[key]) for key in weights if key in parameters}
    faults = [f"not in the model: {key}" for key in weights if key not in wanted]
    for key, tensor in wanted.items():
        if key not in weights:
            if not key.startswith(fresh) and id(parameters.get(key)) not in given:
                faults.append(f"not in the checkpoint: {key}")
        elif weights[key].shape != tensor.shape:
            faults.append(f"{key}: {tuple(weights[key].shape)} in the checkpoint, {tuple(tensor.shape)} in the model")
    if faults:
        raise WeightsError("The checkpoint does not fit the model; " + "; ".join(faults))
    model.load_state_dict({**wanted, **weights})


def check_keys(missing: Iterable[str], unexpected: Iterable[str]) -> None:
    """Refuse what another library's loading leaves as it is, and only logs."""
    faults = [f"not in the checkpoint: {key}" for key in missing] + [f"not in the model: {key}" for key in unexpected]
    if faults:
        raise WeightsError("The checkpoint does not fit the model; " + "; ".join(faults))


def key_pattern(template: str) -> re.Pattern:
    """A template as a regular expression: {i} is a number, any other name one part of a dotted key."""
    parts, seen = [], set()
    for text, name in re.findall(r"([^{]*)(?:\{(\w+)\})?", template):
        parts.append(re.escape(text))
        if name in seen:
            parts.append(f"(?P={name})")
        elif name:
            seen.add(name)
            parts.append(f"(?P<{name}>{r'[0-9]+' if name == 'i' else r'[^.]+'})")
    return re.compile("".join(parts))
