"""Small trainable parts on a frozen model: LoRA, DoRA, bottleneck adapters, prompt tokens.

    adapters.add(model, LoRA(rank=8))     # freezes all but the adapter and the head
    adapters.save(model, "adapter/")      # alone: a few MB
    adapters.merge(model)                 # into the weights: costs nothing any more

Several may be on one model, by name. Each starts as the identity. They hang on the layers whose outputs they change, so
a model's own weights keep their names.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from .attention import Attention
from .config import from_dict
from .encoder import MLP, Block, Encoder
from .errors import UserError
from .init import constant, learned
from .tokens import Tokens

Role = Literal["q", "k", "v", "out", "mlp_in", "mlp_out"]
ROLES: tuple[Role, ...] = ("q", "k", "v", "out", "mlp_in", "mlp_out")


@dataclass(frozen=True, kw_only=True)
class LoRA:
    """A product of two thin matrices, added to a projection (Hu et al. 2022, section 4.1)."""

    rank: int = 8
    """Inner width of the product."""
    alpha: float = 16.0
    """The product is multiplied by alpha / rank."""
    dropout: float = 0.0
    """Of what the product is applied to."""
    roles: tuple[str, ...] = ("q", "v")
    """Which projections (q, k, v, out, mlp_in, mlp_out); the parts of a fused one each by itself."""
    dora: bool = False
    """Learn a gain for each output beside it (Liu et al. 2024, equation 5)."""
    rslora: bool = False
    """Multiply by alpha / root of rank instead (Kalajdzievski 2023)."""

    @property
    def scale(self) -> float:
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)


@dataclass(frozen=True, kw_only=True)
class Bottleneck:
    """A narrow MLP behind each layer's attention and MLP (Houlsby et al. 2019, section 2.1)."""

    width: int = 64
    """Of its hidden layer."""
    parallel: bool = False
    """Beside the MLP, fed what the MLP is fed, instead (He et al. 2022, section 3.3)."""


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """Learned tokens in front of all others (Lester et al. 2021; in pictures Jia et al. 2022, section 3.2)."""

    tokens: int = 10
    """How many."""


Spec = LoRA | Bottleneck | Prompt
KINDS: dict[str, type] = {kind.__name__: kind for kind in (LoRA, Bottleneck, Prompt)}


# --- What they compute ------------------------------------------------------------------------------------------------


class Adapter(nn.Module):
    """Changes the output of the module it hangs on."""

    def __init__(self, spec: Spec):
        super().__init__()
        self.spec, self.enabled, self.merged, self.strength = spec, True, False, 1.0

    def change(self, host: nn.Module, x: Any, out: Any) -> Any:
        raise NotImplementedError


class LowRank(Adapter):
    """LoRA on a linear layer, or on some parts of its outputs; on a shared block, one for each layer it serves.

    parts: how many outputs of each role the layer has, in order. block: the one that it is in, if any.
    """

    def __init__(self, spec: LoRA, host: nn.Linear, parts: Mapping[Role, int], block: Block | None):
        super().__init__(spec)
        self.parts = dict(parts)
        self.turn, self.layers = (block.turn, block.span) if block else (None, 1)
        like = {"dtype": host.weight.dtype, "device": host.weight.device}
        self.down, self.up, self.gain = nn.ParameterDict(), nn.ParameterDict(), nn.ParameterDict()
        for role, weight in zip(parts, host.weight.detach().split(list(parts.values())), strict=True):
            if role not in spec.roles:
                continue
            widest = min(weight.shape)
            if not 1 <= spec.rank <= widest:
                raise UserError(f"LoRA: the rank must be from 1 to {widest}, the width of {role!r}, not {spec.rank}.")
            down = torch.empty(self.layers, spec.rank, weight.shape[1], **like)
            for matrix in down:
                nn.init.kaiming_uniform_(matrix, a=math.sqrt(5))
            self.down[role] = nn.Parameter(down)
            self.up[role] = nn.Parameter(torch.zeros(self.layers, len(weight), spec.rank, **like))
            if spec.dora:
                self.gain[role] = constant(self.layers, len(weight), value=0.0)
                self.gain[role].data = weight.norm(dim=1).expand(self.layers, -1).clone()

    @torch.no_grad()
    def only_layer(self, layer: int) -> None:
        """Keep what is for one of the layers: they no longer share."""
        for parameter in self.parameters():
            parameter.data = parameter.data[layer : layer + 1].clone()
        self.layers = 1

    @property
    def layer(self) -> int:
        return self.turn.now if self.layers > 1 else 0

    def thin(self) -> tuple[Float[Tensor, "r i"], Float[Tensor, "o r"]]:
        """The two matrices for all parts at once: an output takes nothing from what belongs to another part."""
        layer, rank = self.layer, self.spec.rank
        ups, before = [], 0
        for role, size in self.parts.items():
            if role in self.up:
                up = self.up[role][layer] * (self.strength * self.spec.scale)
                ups.append(F.pad(up, (before, (len(self.up) - 1) * rank - before)))
                before += rank
            else:
                ups.append(next(iter(self.up.values())).new_zeros(size, len(self.up) * rank))
        return torch.cat([down[layer] for down in self.down.values()]), torch.cat(ups)

    def gains(self, weight: Float[Tensor, "o i"]) -> Float[Tensor, "o"]:
        """DoRA's factor on each output of the layer as changed: learned over actual norm."""
        gains = []
        for role, part in zip(self.parts, weight.split(list(self.parts.values())), strict=True):
            ones = part.new_ones(len(part))
            # The norm counts as a constant (section 4.3): all but its gradient's small share for much less work.
            gains.append(self.gain[role][self.layer] / part.detach().norm(dim=1) if role in self.gain else ones)
        return torch.cat(gains)

    def change(self, host: nn.Linear, x: Float[Tensor, "*b i"], out: Float[Tensor, "*b o"]) -> Float[Tensor, "*b o"]:
        down, up = self.thin()
        if self.spec.dropout and self.training:
            x = F.dropout(x, self.spec.dropout)
        added = F.linear(F.linear(x, down), up)
        if not self.spec.dora:
            return out + added
        gain = self.gains(host.weight + up @ down)
        plain = out if host.bias is None else out - host.bias
        return out + (gain - 1) * plain + gain * added

    @torch.no_grad()
    def merge(self, weight: nn.Parameter) -> None:
        down, up = self.thin()
        weight += up @ down
        if self.spec.dora:
            self.factors = self.gains(weight)[:, None]  # not to be told from the weight once it is multiplied
            weight *= self.factors

    @torch.no_grad()
    def unmerge(self, weight: nn.Parameter) -> None:
        down, up = self.thin()
        if self.spec.dora:
            weight /= self.factors
        weight -= up @ down


class Narrow(Adapter):
    """A bottleneck behind a layer, fed its output; or beside it, fed its input."""

    def __init__(self, spec: Bottleneck, host: nn.Module, dim: int, like: Tensor):
        super().__init__(spec)
        if spec.width < 1:
            raise UserError(f"Bottleneck: the width must be at least 1, not {spec.width}.")
        self.beside = isinstance(host, MLP)
        self.down = nn.Linear(dim, spec.width, dtype=like.dtype, device=like.device)
        self.up = nn.Linear(spec.width, dim, dtype=like.dtype, device=like.device)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def change(self, host: nn.Module, x: Float[Tensor, "*b i"], out: Float[Tensor, "*b o"]) -> Float[Tensor, "*b o"]:
        return out + self.strength * self.up(F.gelu(self.down(x if self.beside else out)))


class PromptTokens(Adapter):
    """Learned tokens that the encoder sees before the others, and nobody after it."""

    def __init__(self, spec: Prompt, dim: int, like: Tensor):
        super().__init__(spec)
        if spec.tokens < 1:
            raise UserError(f"Prompt: there must be at least 1 token, not {spec.tokens}.")
        self.tokens = learned(spec.tokens, dim)
        self.tokens.data = self.tokens.to(like)

    def before(self, tokens: Tokens) -> Tokens:
        size, new = len(tokens.x), len(self.tokens)
        x = torch.cat([self.strength * self.tokens.to(tokens.x.dtype).expand(size, -1, -1), tokens.x], dim=1)
        mask = None if tokens.mask is None else F.pad(tokens.mask, (new, 0), value=True)
        return Tokens(x, mask=mask, grid=tokens.grid, prefix=tokens.prefix + new)

    def change(self, host: Encoder, x: Tokens, out: Tokens) -> Tokens:
        new = len(self.tokens)
        mask = None if out.mask is None else out.mask[:, new:]
        return Tokens(out.x[:, new:], mask=mask, grid=out.grid, prefix=out.prefix - new)


# --- On a model -------------------------------------------------------------------------------------------------------


def add(model: nn.Module, spec: Spec, name: str = "default", train: Sequence[str] = ("head",)) -> nn.Module:
    """Put a new adapter on a model of ours and freeze all else, but for parts whose names begin as in `train`.

    The model itself, changed; it computes what it did before.
    """
    if name in names(model):
        raise UserError(f"There is an adapter {name!r} already: choose another name, or remove that one.")
    if not name.isidentifier():
        raise UserError(f"{name!r} can't be the name of an adapter: take letters, digits and _.")
    if isinstance(spec, LoRA) and (unknown := [role for role in spec.roles if role not in ROLES]):
        raise UserError(f"LoRA: there is no role {unknown[0]!r}; there are: {', '.join(ROLES)}.")
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
    """The adapters on a model."""
    return list(dict.fromkeys(name for host in _hosts(model).values() for name in host.adapters))


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
            for hooks in (host._forward_hooks, host._forward_pre_hooks):
                for key in [key for key, hook in hooks.items() if hook in (_before, _after)]:
                    del hooks[key]
    if not names(model):
        model.requires_grad_(True)


def save(model: nn.Module, folder: Path | str, name: str = "default") -> None:
    """An adapter alone: adapter.safetensors, and adapter.json that tells what it is and what it fits."""
    folder, hosts = Path(folder), {path: host for path, host in _hosts(model).items() if name in host.adapters}
    folder.mkdir(parents=True, exist_ok=True)
    spec = _called(model, name)[0][1].spec
    record = {
        "kind": type(spec).__name__,
        "spec": asdict(spec),
        "model": type(model).__name__,
        "layers": {path: _shape(host) for path, host in hosts.items()},
    }
    (folder / "adapter.json").write_text(json.dumps(record, indent=2))
    save_file(state(model, name), folder / "adapter.safetensors")


def state(model: nn.Module, name: str = "default") -> dict[str, Tensor]:
    """The tensors of an adapter."""
    return {
        f"{path}.{key}": tensor.contiguous()
        for path, adapter in on(model, name)
        for key, tensor in adapter.state_dict().items()
    }


def load(model: nn.Module, folder: Path | str, name: str = "default") -> nn.Module:
    """Put an adapter that `save` wrote on the model that it was made for, or one just like that."""
    folder = Path(folder)
    try:
        record = json.loads((folder / "adapter.json").read_text())
        tensors = load_file(folder / "adapter.safetensors")
        spec = from_dict(KINDS[record["kind"]], record["spec"])
        fits, kind = record["layers"], record["model"]
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise UserError(f"{folder} holds no adapter that can be read: {error}.") from None
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
    add(model, spec, name)
    try:
        load_state(model, tensors, name)
    except UserError:
        remove(model, name)
        raise
    return model


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
