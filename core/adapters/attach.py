"""Adapters on a model: put on, switched, merged, taken off, saved and loaded."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from typing_extensions import TypedDict

from ..attention.module import Attention
from ..config import from_dict
from ..encoder.blocks import MLP, Block
from ..encoder.encoder import Encoder
from ..errors import UserError
from ..files import first_line, read_json, replacing, write_json
from ..private_torch import forward_hooks, forward_pre_hooks
from .kinds import KINDS, Adapter, Bottleneck, LowRank, Narrow, Prompt, PromptTokens, Role, Spec


class Record(TypedDict):
    """adapter.json: what an adapter is, and what it fits."""

    kind: Literal["LoRA", "Bottleneck", "Prompt"]
    spec: dict[str, Any]
    model: str
    layers: dict[str, list[int]]
    """The shape of the weight of each layer that it hangs on."""


def add(model: nn.Module, spec: Spec, name: str = "default", train: Sequence[str] = ("head",)) -> nn.Module:
    """Put a new adapter on a model of ours and freeze all else, but for parts whose names begin as in `train`.

    The model itself, changed; it computes what it did before.
    """
    if name in names(model):
        raise UserError(f"There is an adapter {name!r} already: choose another name, or remove that one.")
    if not name.isidentifier() or hasattr(nn.ModuleDict(), name):  # which takes no name that is an attribute of it
        raise UserError(f"{name!r} can't be the name of an adapter: take another, of letters, digits and _.")
    made = list(_made(model, spec))
    if not made:
        raise UserError(f"{type(model).__name__} has nothing for {spec} to be put on.")
    for path, host, _ in made:
        if any(getattr(a, "gain", ()) for a in _on(host)) or (getattr(spec, "dora", False) and len(_on(host))):
            raise UserError(f"DoRA learns how large {path} is: there can be no other adapter on it.")
    for _, host, adapter in made:
        if not hasattr(host, "adapters"):
            host.adapters = nn.ModuleDict()
            host.register_forward_pre_hook(_before)
            host.register_forward_hook(_after)
        host.adapters[name] = adapter
    for path, parameter in model.named_parameters():
        parameter.requires_grad = ".adapters." in f".{path}" or path.startswith(tuple(train))
    return model


def names(model: nn.Module) -> list[str]:
    """The adapters on a model, in the order in which they were added."""
    found = [(adapter.number, name) for host in _hosts(model).values() for name, adapter in host.adapters.items()]
    return list(dict.fromkeys(name for _, name in sorted(found)))


def enable(model: nn.Module, name: str, on: bool = True) -> None:
    found = _called(model, name)
    if any(adapter.merged for _, adapter in found):
        raise UserError(f"The adapter {name!r} is merged: unmerge it first.")
    for _, adapter in found:
        adapter.enabled = on


def disable(model: nn.Module, name: str) -> None:
    """Without it the model computes what it would if it were not there."""
    enable(model, name, on=False)


def scale(model: nn.Module, name: str, strength: float) -> None:
    """How much of it counts: 1 as trained, 0 nothing."""
    found = _called(model, name)
    if any(adapter.merged for _, adapter in found):
        raise UserError(f"The adapter {name!r} is merged: unmerge it first.")
    if not math.isfinite(strength):
        raise UserError(f"The strength of the adapter {name!r} must be a finite number, not {strength!r}.")
    for _, adapter in found:
        adapter.strength = strength


def merge(model: nn.Module, name: str = "default") -> None:
    """Add a LoRA to the weights that it changes: it costs nothing any more."""
    found = _called(model, name)
    for _, adapter in found:
        if not isinstance(adapter, LowRank):
            raise UserError(f"The adapter {name!r} can't be merged: only a LoRA becomes part of the weights.")
        if adapter.layers > 1:
            raise UserError(f"The adapter {name!r} differs by layer, but the layers share weights: unshare() first.")
        if adapter.merged:
            raise UserError(f"The adapter {name!r} is merged already.")
    for host, adapter in found:
        adapter.merge(host.weight)
        adapter.merged = True


def unmerge(model: nn.Module, name: str = "default") -> None:
    found = _called(model, name)
    if not all(adapter.merged for _, adapter in found):
        raise UserError(f"The adapter {name!r} is not merged.")
    for host, adapter in found:
        adapter.unmerge(host.weight)
        adapter.merged = False


def remove(model: nn.Module, name: str = "default") -> None:
    """Take an adapter off; merged, it stays in the weights. With the last one gone all weights train again."""
    _called(model, name)
    for host in list(_hosts(model).values()):
        if name in host.adapters:
            del host.adapters[name]
        if not host.adapters:
            del host.adapters
            for hooks in (forward_hooks(host), forward_pre_hooks(host)):
                for key in [key for key, hook in hooks.items() if hook in (_before, _after)]:
                    del hooks[key]
    if not names(model):
        model.requires_grad_(True)


def save(model: nn.Module, folder: Path | str, name: str = "default", beside: bool = True) -> None:
    """An adapter alone: adapter.safetensors, and adapter.json that tells what it is and what it fits.

    beside: keep what else is trained with it too, the head for one, in beside.safetensors.
    """
    spec = _called(model, name)[0][1].spec
    folder, hosts = Path(folder), {path: host for path, host in _hosts(model).items() if name in host.adapters}
    folder.mkdir(parents=True, exist_ok=True)
    record = {
        "kind": type(spec).__name__,
        "spec": asdict(spec),
        "model": type(model).__name__,
        "layers": {path: _shape(host) for path, host in hosts.items()},
    }
    write_json(folder / "adapter.json", record)
    with replacing(folder / "adapter.safetensors") as partial:
        save_file(state(model, name), partial)
    trained = {path: p.detach().contiguous() for path, p in weights_beside(model).items() if p.requires_grad}
    if beside and trained:
        with replacing(folder / "beside.safetensors") as partial:
            save_file(trained, partial)
    else:
        (folder / "beside.safetensors").unlink(missing_ok=True)  # of an adapter saved there before


def state(model: nn.Module, name: str = "default") -> dict[str, Tensor]:
    """The tensors of an adapter."""
    return {
        f"{path}.{key}": tensor.contiguous()
        for path, adapter in on(model, name)
        for key, tensor in adapter.state_dict().items()
    }


def load(model: nn.Module, folder: Path | str, name: str = "default", beside: bool = True) -> nn.Module:
    """Put an adapter that `save` wrote on the model that it was made for, or one just like that.

    beside: what was saved beside it, the head for one, takes the place of the model's.
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
    fits, kind = record["layers"], record["model"]
    if kind != type(model).__name__:
        raise UserError(f"The adapter in {folder} is for a {kind}, not for a {type(model).__name__}.")
    layers = {path: _shape(host) for path, host, _ in _made(model, spec)}
    for path in sorted(fits.keys() | layers.keys()):
        if path not in layers or path not in fits:
            which = "changes" if path in fits else "lacks"
            raise UserError(f"The adapter in {folder} is for another model: it {which} {path}.")
        if fits[path] != layers[path]:
            was = f"{path} was {fits[path]} there and is {layers[path]} here"
            raise UserError(f"The adapter in {folder} is for another model: {was}.")
    own = weights_beside(model)
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
    return model


def weights_beside(model: nn.Module) -> dict[str, nn.Parameter]:
    """What is of no adapter."""
    return {path: p for path, p in model.named_parameters() if ".adapters." not in f".{path}"}


@torch.no_grad()
def load_state(model: nn.Module, tensors: Mapping[str, Tensor], name: str = "default") -> None:
    own = {
        f"{path}.{key}": tensor
        for path, adapter in on(model, name)
        for key, tensor in adapter.state_dict(keep_vars=True).items()
    }
    for key in sorted(own.keys() | tensors.keys()):
        if key not in tensors or key not in own or own[key].shape != tensors[key].shape:
            raise UserError(f"The adapter's tensors do not fit: the first that does not is {key}.")
        own[key].copy_(tensors[key])


def _made(model: nn.Module, spec: Spec) -> Iterator[tuple[str, nn.Module, Adapter]]:
    """New adapters, what each is to hang on, and the path of that."""
    modules = dict(model.named_modules())
    for path, module in modules.items():
        weight = getattr(module, "weight", None)  # of a quantised module it is a function, or of whole numbers
        if weight is not None and not (isinstance(weight, Tensor) and weight.is_floating_point()):
            raise UserError(f"{path} is quantised: an adapter can only be put on a model before that.")
    blocks = {path: module for path, module in modules.items() if isinstance(module, Block)}
    if isinstance(spec, Prompt):
        for path, module in modules.items():
            if isinstance(module, Encoder):
                yield path, module, PromptTokens(spec, module.config.dim, next(module.parameters()))
    elif isinstance(spec, Bottleneck):
        for path, block in blocks.items():
            for place in ("mlp",) if spec.parallel else ("attention.out", "mlp.down"):
                host, down = block.get_submodule(place), block.mlp.down
                yield f"{path}.{place}", host, Narrow(spec, host, down.out_features, down.weight)
    else:
        for path, module in modules.items():
            for place, parts in _parts(module).items():
                if set(parts) & set(spec.roles):
                    host, block = getattr(module, place), blocks.get(path.rpartition(".")[0])
                    yield f"{path}.{place}".removeprefix("."), host, LowRank(spec, host, parts, block)


def _parts(module: nn.Module) -> dict[str, dict[Role, int]]:
    """The linear layers of attention or an MLP, and how many of the outputs of each have which role."""
    if isinstance(module, MLP):
        return {"up": {"mlp_in": module.up.out_features}, "down": {"mlp_out": module.down.out_features}}
    if not isinstance(module, Attention):
        return {}
    out = {"out": {"out": module.out.out_features}}
    if hasattr(module, "qkv"):
        return {"qkv": dict.fromkeys(("q", "k", "v"), module.qkv.out_features // 3), **out}
    return {
        "q": {"q": module.q.out_features},
        "kv": dict.fromkeys(("k", "v"), module.kv.out_features // 2),
        **out,
    }


def _hosts(model: nn.Module) -> dict[str, nn.Module]:
    """What has adapters on it, by path."""
    return {path: module for path, module in model.named_modules() if hasattr(module, "adapters")}


def _on(host: nn.Module) -> list[Adapter]:
    return list(getattr(host, "adapters", {}).values())


def on(model: nn.Module, name: str = "default") -> list[tuple[str, Adapter]]:
    """What an adapter is made of, by the path of the layer that each part hangs on."""
    return [(path, host.adapters[name]) for path, host in _hosts(model).items() if name in host.adapters]


def _called(model: nn.Module, name: str) -> list[tuple[nn.Module, Adapter]]:
    found = [(host, host.adapters[name]) for host in _hosts(model).values() if name in host.adapters]
    if not found:
        raise UserError(f"There is no adapter {name!r}; there are: {', '.join(names(model)) or 'none'}.")
    return found


def _shape(host: nn.Module) -> list[int]:
    return list(next(iter(host.parameters())).shape)


def _active(host: nn.Module) -> list[Adapter]:
    return [adapter for adapter in host.adapters.values() if adapter.enabled and not adapter.merged]


def _before(host: nn.Module, inputs: tuple) -> tuple:
    x, *rest = inputs
    for adapter in _active(host):
        if isinstance(adapter, PromptTokens):
            x = adapter.before(x)
    return x, *rest


def _after(host: nn.Module, inputs: tuple, out: Any) -> Any:
    for adapter in _active(host):
        out = adapter.change(host, inputs[0], out)
    return out
