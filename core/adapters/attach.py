"""Add adapters to a model, enable and disable, merge and remove them."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor, nn

from ..attention.module import Attention
from ..encoder.blocks import MLP, Block
from ..encoder.encoder import Encoder
from ..errors import UserError
from ..private_torch import forward_hooks, forward_pre_hooks
from .kinds import Adapter, Bottleneck, BottleneckAdapter, LoRA, LoRAAdapter, Prompt, PromptAdapter, Role, Spec


def add(model: nn.Module, spec: Spec, name: str = "default", train: Sequence[str] | None = None) -> nn.Module:
    """Add a new adapter to a model of ours and return that model, which computes what it did before.

    All parameters are frozen except those of adapters, and those whose names start with one of `train`: those of
    `head`, if None, where the model has one.
    """
    own = [path for path, _ in model.named_parameters() if not _is_adapters(path)]
    if train is not None and (absent := [part for part in train if not any(path.startswith(part) for path in own)]):
        parts = ", ".join(dict.fromkeys(path.partition(".")[0] for path in own))
        raise UserError(
            f"{type(model).__name__} has no parameters under {absent[0]!r} to train; its parts are {parts}."
        )
    if name in names(model):
        raise UserError(f"There is an adapter {name!r} already: choose another name, or remove that one.")
    if not name.isidentifier() or hasattr(nn.ModuleDict(), name):  # a ModuleDict refuses the names of its attributes
        raise UserError(f"{name!r} can't be the name of an adapter: take another, of letters, digits and _.")
    new = list(new_adapters(model, spec))
    if not new:
        raise UserError(f"{type(model).__name__} has nothing for {spec} to be put on.")
    for path, host, _ in new:
        others = _adapters(host).values()
        is_dora = isinstance(spec, LoRA) and spec.dora
        if any(isinstance(other, LoRAAdapter) and other.spec.dora for other in others) or (is_dora and others):
            raise UserError(f"DoRA learns how large {path} is: there can be no other adapter on it.")
    for _, host, adapter in new:
        if not hasattr(host, "adapters"):
            host.adapters = nn.ModuleDict()
            host.register_forward_pre_hook(_before)
            host.register_forward_hook(_after)
        host.get_submodule("adapters").add_module(name, adapter)
    for path, parameter in model.named_parameters():
        parameter.requires_grad = _is_adapters(path) or path.startswith(("head",) if train is None else tuple(train))
    return model


def names(model: nn.Module) -> list[str]:
    """The names of the adapters of a model, in the order in which they were added."""
    numbered = [(adapter.number, name) for host in hosts(model).values() for name, adapter in _adapters(host).items()]
    return list(dict.fromkeys(name for _, name in sorted(numbered)))


def modules(model: nn.Module, name: str = "default") -> list[tuple[str, Adapter]]:
    """The modules of an adapter, each with the path of the module whose output it changes."""
    return [(path, _adapters(host)[name]) for path, host in hosts(model).items() if name in _adapters(host)]


def base_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that belong to no adapter."""
    return {path: parameter for path, parameter in model.named_parameters() if not _is_adapters(path)}


def enable(model: nn.Module, name: str, on: bool = True) -> None:
    for _, adapter in _unmerged(model, name):
        adapter.enabled = on


def disable(model: nn.Module, name: str) -> None:
    """Without the adapter the model computes what it did before the adapter was added."""
    enable(model, name, on=False)


def scale(model: nn.Module, name: str, strength: float) -> None:
    """Multiply what an adapter changes: 1 is as trained, 0 is nothing."""
    found = _unmerged(model, name)
    if not math.isfinite(strength):
        raise UserError(f"The strength of the adapter {name!r} must be a finite number, not {strength!r}.")
    for _, adapter in found:
        adapter.strength = float(strength)


def merge(model: nn.Module, name: str = "default") -> None:
    """Add a LoRA to the weights that it changes, so that it costs nothing any more."""
    found = []
    for host, adapter in _existing(model, name):
        if not isinstance(adapter, LoRAAdapter):
            raise UserError(f"The adapter {name!r} can't be merged: only a LoRA becomes part of the weights.")
        if adapter.num_layers > 1:
            raise UserError(f"The adapter {name!r} differs by layer, but the layers share weights: unshare() first.")
        if adapter.merged:
            raise UserError(f"The adapter {name!r} is merged already.")
        found.append((host, adapter))
    for host, adapter in found:
        adapter.merge(host.weight)
        adapter.merged = True


def unmerge(model: nn.Module, name: str = "default") -> None:
    """Subtract a merged LoRA from the weights."""
    found = _existing(model, name)
    if not all(adapter.merged for _, adapter in found):
        raise UserError(f"The adapter {name!r} is not merged.")
    for host, adapter in found:
        assert isinstance(adapter, LoRAAdapter)  # the others cannot be merged
        adapter.unmerge(host.weight)
        adapter.merged = False


def remove(model: nn.Module, name: str = "default") -> None:
    """Remove an adapter; merged weights stay merged. Without any adapter, all parameters are trainable again."""
    for host, _ in _existing(model, name):
        del host.adapters[name]
        if not host.adapters:
            del host.adapters
            for hooks in (forward_hooks(host), forward_pre_hooks(host)):
                for key in [key for key, hook in hooks.items() if hook in (_before, _after)]:
                    del hooks[key]
    if not names(model):
        model.requires_grad_(True)


def new_adapters(model: nn.Module, spec: Spec) -> Iterator[tuple[str, nn.Module, Adapter]]:
    """New adapters, each with the module whose output it changes and the path of that."""
    by_path = dict(model.named_modules())
    for path, module in by_path.items():
        weight = getattr(module, "weight", None)  # a quantised module has a function there, or integers
        if weight is not None and not (isinstance(weight, Tensor) and weight.is_floating_point()):
            raise UserError(f"{path} is quantised: an adapter can only be put on a model before that.")
    blocks = {path: module for path, module in by_path.items() if isinstance(module, Block)}
    if isinstance(spec, Prompt):
        for path, module in by_path.items():
            if isinstance(module, Encoder):
                yield path, module, PromptAdapter(spec, module.config.dim, next(module.parameters()))
    elif isinstance(spec, Bottleneck):
        for path, block in blocks.items():
            for place in ("mlp",) if spec.parallel else ("attention.out", "mlp.down"):
                down = block.mlp.down
                host = block.get_submodule(place)
                yield f"{path}.{place}", host, BottleneckAdapter(spec, down.out_features, down.weight)
    else:
        for path, module in by_path.items():
            for place, sizes in _roles(module).items():
                if set(sizes) & set(spec.roles):
                    host, block = getattr(module, place), blocks.get(path.rpartition(".")[0])
                    yield f"{path}.{place}".removeprefix("."), host, LoRAAdapter(spec, host, sizes, block)


def _roles(module: nn.Module) -> dict[str, dict[Role, int]]:
    """The linear layers of attention or an MLP, and how many of the outputs of each have which role."""
    if isinstance(module, MLP):
        return {"up": {"mlp_in": module.up.out_features}, "down": {"mlp_out": module.down.out_features}}
    if not isinstance(module, Attention):
        return {}
    out: dict[str, dict[Role, int]] = {"out": {"out": module.out.out_features}}
    q, k, v = module.sizes
    if hasattr(module, "qkv"):
        return {"qkv": {"q": q, "k": k, "v": v}, **out}
    return {"q": {"q": q}, "kv": {"k": k, "v": v}, **out}


def hosts(model: nn.Module) -> dict[str, nn.Module]:
    """The modules that adapters are on, by path."""
    return {path: module for path, module in model.named_modules() if hasattr(module, "adapters")}


def _adapters(host: nn.Module) -> dict[str, Adapter]:
    own = getattr(host, "adapters", nn.ModuleDict())
    return {name: adapter for name, adapter in own.items() if isinstance(adapter, Adapter)}


def _is_adapters(path: str) -> bool:
    return ".adapters." in f".{path}"


def _existing(model: nn.Module, name: str) -> list[tuple[Any, Adapter]]:
    """The modules of an adapter, each with its host."""
    found = [(host, _adapters(host)[name]) for host in hosts(model).values() if name in _adapters(host)]
    if not found:
        raise UserError(f"There is no adapter {name!r}; there are: {', '.join(names(model)) or 'none'}.")
    return found


def _unmerged(model: nn.Module, name: str) -> list[tuple[Any, Adapter]]:
    found = _existing(model, name)
    if any(adapter.merged for _, adapter in found):
        raise UserError(f"The adapter {name!r} is merged: unmerge it first.")
    return found


def _active(host: nn.Module) -> list[Adapter]:
    return [adapter for adapter in _adapters(host).values() if adapter.enabled and not adapter.merged]


def _before(host: nn.Module, inputs: tuple) -> tuple:
    x, *rest = inputs
    for adapter in _active(host):
        x = adapter.change_input(x)
    return x, *rest


def _after(host: nn.Module, inputs: tuple, out: Any) -> Any:
    for adapter in _active(host):
        if isinstance(out, list):  # of an encoder, the tokens after several layers
            out = [adapter.change_output(host, inputs[0], tokens) for tokens in out]
        else:
            out = adapter.change_output(host, inputs[0], out)
    return out
