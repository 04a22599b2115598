"""Save and load adapters without the model."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, NotRequired

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from typing_extensions import TypedDict

from ..config import from_dict
from ..errors import UserError
from ..files import first_line, read_json, replacing, write_json
from .attach import add, base_parameters, modules, names, new_adapters, remove, scale
from .kinds import KINDS, Spec


class Record(TypedDict):
    """adapter.json: the configuration of an adapter, and the model that it is for."""

    kind: Literal["LoRA", "Bottleneck", "Prompt"]
    spec: dict[str, Any]
    model: str
    layers: dict[str, list[int]]
    """The shape of the weight of each layer that the adapter is on."""
    strength: NotRequired[float]
    """By which what it changes is multiplied; 1 if it is not said."""


def save(model: nn.Module, folder: Path | str, name: str = "default", beside: bool = True) -> None:
    """Save an adapter: its tensors in adapter.safetensors, its configuration in adapter.json.

    beside: save other trainable parameters too, such as those of the head, in beside.safetensors.
    """
    parts = modules(model, name)
    if not parts:
        raise UserError(f"There is no adapter {name!r}; there are: {', '.join(names(model)) or 'none'}.")
    spec, folder = parts[0][1].spec, Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    record = {
        "kind": type(spec).__name__,
        "spec": asdict(spec),
        "model": type(model).__name__,
        "layers": {path: _shape(model.get_submodule(path)) for path, _ in parts},
        "strength": parts[0][1].strength,
    }
    write_json(folder / "adapter.json", record)
    with replacing(folder / "adapter.safetensors") as partial:
        save_file(state(model, name), partial)
    trained = {path: p.detach().contiguous() for path, p in base_parameters(model).items() if p.requires_grad}
    if beside and trained:
        with replacing(folder / "beside.safetensors") as partial:
            save_file(trained, partial)
    else:
        (folder / "beside.safetensors").unlink(missing_ok=True)  # that of an adapter saved there before


def state(model: nn.Module, name: str = "default") -> dict[str, Tensor]:
    """The tensors of an adapter."""
    return {
        f"{path}.{key}": tensor.contiguous()
        for path, adapter in modules(model, name)
        for key, tensor in adapter.state_dict().items()
    }


def load(model: nn.Module, folder: Path | str, name: str = "default", beside: bool = True) -> nn.Module:
    """Add an adapter that `save` wrote to the model that it was trained on, or to one of the same shape.

    beside: load the other parameters that were saved with it too, such as those of the head.
    """
    folder = Path(folder)
    try:
        record = read_json(folder / "adapter.json", Record)
        tensors = load_file(folder / "adapter.safetensors")
        others = folder / "beside.safetensors"
        trained = load_file(others) if beside and others.exists() else {}
        spec = from_dict(KINDS[record["kind"]], record["spec"])
    except (OSError, UserError, SafetensorError) as error:
        raise UserError(f"{folder} holds no adapter that can be read: {first_line(error)}.") from None
    _check_model(model, folder, record, spec)
    own = base_parameters(model)
    for path, tensor in trained.items():
        if path not in own or own[path].shape != tensor.shape:
            here = list(own[path].shape) if path in own else "not"
            was = f"{path} was {list(tensor.shape)} there and is {here} here"
            raise UserError(f"What was trained beside the adapter in {folder} does not fit: {was} (or beside=False).")
    add(model, spec, name)
    try:
        load_state(model, tensors, name)
    except UserError:
        remove(model, name)
        raise
    with torch.no_grad():
        for path, tensor in trained.items():
            own[path].copy_(tensor)
    scale(model, name, record.get("strength", 1.0))
    return model


def _check_model(model: nn.Module, folder: Path, record: Record, spec: Spec) -> None:
    """Refuse an adapter that was trained on another model."""
    expected, kind = record["layers"], record["model"]
    if kind != type(model).__name__:
        raise UserError(f"The adapter in {folder} is for a {kind}, not for a {type(model).__name__}.")
    layers = {path: _shape(host) for path, host, _ in new_adapters(model, spec)}
    for path in sorted(expected.keys() | layers.keys()):
        if path not in layers or path not in expected:
            which = "changes" if path in expected else "lacks"
            raise UserError(f"The adapter in {folder} is for another model: it {which} {path}.")
        if expected[path] != layers[path]:
            was = f"{path} was {expected[path]} there and is {layers[path]} here"
            raise UserError(f"The adapter in {folder} is for another model: {was}.")


@torch.no_grad()
def load_state(model: nn.Module, tensors: Mapping[str, Tensor], name: str = "default") -> None:
    """Copy the tensors of an adapter, as `state` returns them, into that of the model."""
    own = {
        f"{path}.{key}": tensor
        for path, adapter in modules(model, name)
        for key, tensor in adapter.state_dict(keep_vars=True).items()
    }
    for key in sorted(own.keys() | tensors.keys()):
        if key not in tensors or key not in own or own[key].shape != tensors[key].shape:
            raise UserError(f"The adapter's tensors do not fit: the first that does not is {key}.")
        own[key].copy_(tensors[key])


def _shape(host: nn.Module) -> list[int]:
    return list(next(iter(host.parameters())).shape)
