"""LoRA in the format of Hugging Face's PEFT: adapter_config.json and adapter_model.safetensors.

    peft.read(model, "their-adapter/", text.hf_keys.BERT)
    peft.write(model, "for-them/", text.hf_keys.BERT, prefix="bert.")

The key map that loads the stock model's weights (core/checkpoints/keys.py) says which of its layers is which of ours.
"""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, NotRequired

import torch
from pydantic import ConfigDict, with_config
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from typing_extensions import TypedDict

from .. import adapters
from ..attention.module import Attention
from ..checkpoints.keys import KeyMap, Move, key_pattern
from ..errors import UserError
from ..files import check_file, first_line, read_json, replacing, write_json
from . import LoRA, LoRAAdapter, Role

OUTER = "base_model.model."  # PEFT's prefix of every name
ROLES: dict[str, tuple[Role, ...]] = {
    "attention.qkv": ("q", "k", "v"),
    "attention.out": ("out",),
    "mlp.up": ("mlp_in",),
    "mlp.down": ("mlp_out",),
}
DOWN, UP, GAIN = ".lora_A.weight", ".lora_B.weight", ".lora_magnitude_vector"
# Options of PEFT that do not change what the adapter computes.
NEUTRAL = {
    "auto_mapping",
    "base_model_name_or_path",
    "corda_config",
    "ensure_weight_tying",
    "eva_config",
    "exclude_modules",
    "fan_in_fan_out",
    "inference_mode",
    "layers_pattern",
    "layers_to_transform",
    "loftq_config",
    "lora_ga_config",
    "megatron_core",
    "modules_to_save",
    "peft_version",
    "qalora_group_size",
    "revision",
    "runtime_config",
    "target_modules",
    "task_type",
}
READ = {"peft_type", "r", "lora_alpha", "lora_dropout", "use_dora", "use_rslora", "bias", "init_lora_weights"}
PLAIN_STARTS = (True, False, "gaussian", "orthogonal", "eva")  # others change the model that the adapter is put on
# In the names of the layers that one head alone has.
OF_HEADS = {"tokens": ("predictions", "lm_head", "vocab_", "decoder"), "spans": ("qa_outputs",)}


@with_config(ConfigDict(extra="allow"))
class Config(TypedDict):
    """The options in adapter_config.json that are read."""

    peft_type: str
    r: NotRequired[int]
    lora_alpha: NotRequired[float]
    lora_dropout: NotRequired[float]
    use_dora: NotRequired[bool]
    use_rslora: NotRequired[bool]
    bias: NotRequired[str]
    init_lora_weights: NotRequired[bool | str | None]


class Place(NamedTuple):
    """A layer of our model, and what of it one layer of the stock model has.

    roles: the roles whose outputs it has. index, count: it has this one of `count` equal parts of the outputs of a
        single role (a gated MLP's first projection is two layers in many stock models).
    """

    block: str
    layer: str
    roles: tuple[Role, ...]
    index: int = 0
    count: int = 1

    @property
    def path(self) -> str:
        return f"{self.block}.{self.layer}"


def read(model: nn.Module, folder: Path | str, keys: KeyMap, name: str = "default") -> nn.Module:
    """Add a LoRA that PEFT trained on the stock model to our model, and load the head if it was trained too."""
    folder = Path(folder)
    try:
        config = read_json(folder / "adapter_config.json", Config)
        check_file(folder / "adapter_model.safetensors")
        tensors = load_file(folder / "adapter_model.safetensors")
    except (OSError, UserError, SafetensorError) as error:
        raise UserError(f"{folder} holds no PEFT adapter that can be read: {first_line(error)}.") from None
    _check(config, folder)
    rank, alpha = config["r"], config["lora_alpha"]
    pieces: dict[Place, dict[str, Tensor]] = {}
    whole: dict[tuple[str, int, int], Tensor] = {}
    for key, tensor in tensors.items():
        theirs = key.removeprefix(OUTER)
        ending = next((end for end in (DOWN, UP, GAIN) if end in theirs), None)
        if ending is None:
            whole[_ours(keys, theirs.replace(".base_layer.", "."), folder)] = tensor  # a layer that has a LoRA
            continue
        place = _place(*_ours(keys, f"{theirs[: theirs.index(ending)]}.weight", folder), theirs)
        pieces.setdefault(place, {})[ending] = tensor
    adapted = {role for place in pieces for role in place.roles}
    several = max((place.count for place in pieces), default=1)  # their matrices stand side by side in ours
    roles: tuple[Role, ...] = tuple(role for group in ROLES.values() for role in group if role in adapted)
    spec = LoRA(
        rank=several * rank,
        alpha=float(alpha) * (math.sqrt(several) if config.get("use_rslora", False) else several),
        dropout=float(config.get("lora_dropout", 0.0)),
        roles=roles,
        dora=config.get("use_dora", False),
        rslora=config.get("use_rslora", False),
    )
    own = model.state_dict()
    trained = {}
    for (key, index, count), tensor in whole.items():
        part = _parts(model, key, own[key], count)[index] if key in own else None
        if part is None or part.shape != tensor.shape:
            raise UserError(f"{folder} holds a trained {key} that the model has no place for.")
        _parts(model, key, trained.setdefault(key, own[key].clone()), count)[index].copy_(tensor)
    for key, tensor in trained.items():
        same = (other for other in own if other != key and own[other].data_ptr() == own[key].data_ptr())
        if apart := [other for other in same if not torch.equal(tensor, trained.get(other, own[other]))]:
            raise UserError(f"{folder} holds a trained {key} of its own, but the model's is tied to {apart[0]}.")
    adapters.add(model, spec, name)
    for place, parts in pieces.items():
        try:
            _fill(model, place, parts, name)
        except (AttributeError, RuntimeError, KeyError, ValueError):
            adapters.remove(model, name)
            raise UserError(f"{folder} is for another model: {place.path} does not fit.") from None
    for key, tensor in trained.items():
        own[key].copy_(tensor)
    return model


def _check(config: Mapping[str, Any], folder: Path) -> None:
    """Refuse configurations whose adapter computes something that a LoRA of ours does not."""
    kind, start = config["peft_type"], config.get("init_lora_weights", True)
    if kind != "LORA":
        raise UserError(f"{folder}: a LoRA of one rank and alpha can be read, not {kind}.")
    if missing := [name for name in ("r", "lora_alpha") if name not in config]:
        raise UserError(f"{folder}: adapter_config.json has no {missing[0]}.")
    if config.get("rank_pattern") or config.get("alpha_pattern"):
        raise UserError(f"{folder}: a LoRA of one rank and alpha can be read, not one with patterns of them.")
    if start not in (*PLAIN_STARTS, None):
        raise UserError(
            f"{folder}: an adapter that started as {start!r} belongs to a model whose weights that start has changed: "
            "save it with PEFT's path_initial_model_for_weight_conversion, which makes a plain LoRA of it."
        )
    for name, value in config.items():
        if value and name not in NEUTRAL | READ:
            raise UserError(f"{folder}: the adapter's {name} is {value!r}, which cannot be read.")


def write(model: nn.Module, folder: Path | str, keys: KeyMap, name: str = "default", prefix: str = "") -> None:
    """Write a LoRA of ours, and the head trained with it, for PEFT's `PeftModel.from_pretrained` on the stock model.

    prefix: what the stock model has before the base model's names of layers ("bert." in a model with a head).
    """
    folder, parts = Path(folder), adapters.modules(model, name)
    found = [(path, adapter) for path, adapter in parts if isinstance(adapter, LoRAAdapter)]
    if not parts:
        raise UserError(f"There is no adapter {name!r}; there are: {', '.join(adapters.names(model)) or 'none'}.")
    if len(found) < len(parts):
        raise UserError(f"The adapter {name!r} is not a LoRA: PEFT's format is written for those alone.")
    if any(adapter.num_layers > 1 for _, adapter in found):
        raise UserError(f"The adapter {name!r} differs by layer, but the layers share weights: unshare() first.")
    spec, strength = found[0][1].spec, found[0][1].strength
    if spec.dora and strength != 1:
        raise UserError(f"The adapter {name!r} is scaled, which PEFT's format has no place for in DoRA: scale it to 1.")
    tensors, theirs = {}, {}
    for path, layers in _theirs(keys, [path for path, _ in found]):
        theirs.setdefault(path, layers)  # of several rules the first is the usual one
    if absent := [path for path, _ in found if path not in theirs]:
        raise UserError(f"The key map knows no layer of the stock model that is {absent[0]}.")
    # A layer of the stock model with several roles has their matrices side by side; the others are padded with 0.
    several = max(len(a.up) if len(theirs[path]) == 1 else 1 for path, a in found)
    rank = several * spec.rank
    for path, adapter in found:
        roles: list[Role] = list(adapter.parts)
        layers = theirs[path]
        groups: list[list[Role]] = [[role] for role in roles] if len(layers) == len(roles) else [roles] * len(layers)
        shares = len(layers) if len(roles) == 1 else 1  # layers that have equal parts of the outputs of one role
        for index, (layer, group) in enumerate(zip(layers, groups, strict=True)):
            if not any(role in adapter.up for role in group):
                continue
            part = index if shares > 1 else 0
            down = torch.cat([adapter.down[role][0] for role in group if role in adapter.up])
            up = torch.block_diag(
                *(
                    adapter.up[role][0] if role in adapter.up else down.new_zeros(adapter.parts[role], 0)
                    for role in group
                )
            )
            up, missing = strength * up.chunk(shares)[part], rank - len(down)
            tensors[f"{OUTER}{prefix}{layer}{DOWN}"] = nn.functional.pad(down, (0, 0, 0, missing))
            tensors[f"{OUTER}{prefix}{layer}{UP}"] = nn.functional.pad(up, (0, missing))
            if spec.dora:
                weight = model.get_parameter(f"{path}.weight").split(list(adapter.parts.values()))
                norms = dict(zip(roles, (part.norm(dim=1) for part in weight), strict=True))
                gains = [adapter.gain[role][0] if role in adapter.gain else norms[role] for role in group]
                tensors[f"{OUTER}{prefix}{layer}{GAIN}"] = torch.cat(gains).chunk(shares)[part]
    targets = sorted({key.removeprefix(OUTER).split(".lora_")[0] for key in tensors})
    saved = set()
    for path, parameter in adapters.base_parameters(model).items():
        if parameter.requires_grad:
            layer, _, part = path.rpartition(".")
            stock = _stock_layer(keys, layer, part, prefix, getattr(model.config, "head", ""))
            saved.add(stock)
            tensors[f"{OUTER}{stock}.{part}"] = parameter
    config = {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": spec.alpha * (math.sqrt(several) if spec.rslora else several),
        "lora_dropout": spec.dropout,
        "use_dora": spec.dora,
        "use_rslora": spec.rslora,
        "target_modules": targets,
        "modules_to_save": sorted(saved) or None,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / "adapter_model.safetensors") as partial:
        save_file({key: t.detach().contiguous() for key, t in tensors.items()}, partial, metadata={"format": "pt"})
    write_json(folder / "adapter_config.json", config)


def _stock_layer(keys: KeyMap, layer: str, part: str, prefix: str, head: str) -> str:
    """The stock model's name of a layer of the head.

    head: what it predicts; a key map has names for the heads of all tasks.
    """
    found = []
    for sources, target in keys.items():
        to = target.to if isinstance(target, Move) else target
        if isinstance(sources, str) and to is not None and (match := key_pattern(to).fullmatch(f"{layer}.{part}")):
            found.append(sources.format(**match.groupdict()).removesuffix(f".{part}"))
    own, other = OF_HEADS.get(head, ()), [word for words in OF_HEADS.values() for word in words]
    fitting = [name for name in found if any(word in name for word in own)]
    fitting = fitting or [name for name in found if not any(word in name for word in other)] or found
    if not fitting:
        raise UserError(
            f"{layer} was trained beside the adapter, and the key map knows no such layer of the stock model."
        )
    # A family's own rule comes after those that it takes from another; the head for tags is a single layer.
    name = min(fitting, key=len) if head == "tags" else fitting[-1]
    return f"{prefix}{name}" if name.startswith("pooler") else name


@torch.no_grad()
def _fill(model: nn.Module, place: Place, parts: dict[str, Tensor], name: str) -> None:
    adapter = dict(adapters.modules(model, name))[place.path]
    assert isinstance(adapter, LoRAAdapter)
    sizes = [adapter.parts[role] // place.count for role in place.roles]
    first = place.index * len(parts[DOWN])  # of the columns that this layer's matrix has in ours
    columns = slice(first, first + len(parts[DOWN]))
    for role, up in zip(place.roles, parts[UP].split(sizes), strict=True):
        adapter.down[role][:, columns].copy_(parts[DOWN])  # on shared blocks the same for all layers
        adapter.up[role].chunk(place.count, dim=1)[place.index][:, :, columns].copy_(up)
    if GAIN in parts:
        for role, gain in zip(place.roles, parts[GAIN].split(sizes), strict=True):
            adapter.gain[role].chunk(place.count, dim=1)[place.index].copy_(gain)


def _ours(keys: KeyMap, theirs: str, folder: Path) -> tuple[str, int, int]:
    """Our name of a weight of the stock model; its index among the weights that ours is made of, and their number."""
    parts = theirs.split(".")
    for start in range(len(parts)):  # the stock model may be part of a model with a head
        name = ".".join(parts[start:])
        for sources, target in keys.items():
            sources = (sources,) if isinstance(sources, str) else sources
            for index, source in enumerate(sources):
                if target is not None and (match := key_pattern(source).fullmatch(name)):
                    if isinstance(target, Move):
                        raise UserError(f"{folder}: {theirs} is stored in another way here, so it cannot be read.")
                    return target.format(**match.groupdict()), index, len(sources)
    raise UserError(f"{folder} is for another model: {theirs} has no counterpart in the key map.")


def _parts(model: nn.Module, key: str, tensor: Tensor, count: int) -> tuple[Tensor, ...]:
    """What each of `count` layers of the stock model has of one of our weights."""
    module = model.get_submodule(key.rpartition(".")[0].rpartition(".")[0])
    is_joined = isinstance(module, Attention) and count == len(module.sizes)
    return tensor.split(module.sizes) if is_joined else tensor.chunk(count)


def _place(ours: str, index: int, count: int, theirs: str) -> Place:
    for layer, roles in ROLES.items():
        if ours.endswith(f".{layer}.weight"):
            block = ours.removesuffix(f".{layer}.weight")
            if len(roles) == 1:
                return Place(block, layer, roles, index, count)
            return Place(block, layer, roles if count == 1 else (roles[index],))
    raise UserError(f"The adapter changes {theirs}: only attention and MLP layers can be adapted here.")


def _theirs(keys: KeyMap, paths: list[str]) -> Iterator[tuple[str, list[str]]]:
    """The layers of the stock model that each of ours is made of."""
    for sources, target in keys.items():
        if target is None:
            continue
        to = target.to if isinstance(target, Move) else target
        for path in paths:
            if match := key_pattern(to).fullmatch(f"{path}.weight"):
                sources = (sources,) if isinstance(sources, str) else sources
                yield path, [source.format(**match.groupdict()).removesuffix(".weight") for source in sources]
