"""Fine-tuning: a model takes over weights, parts of it are trained, and adapters are merged afterwards."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from torch import nn

from .. import adapters
from ..adapters import Bottleneck, LoRA, Prompt
from ..checkpoints.keys import load
from ..encoder.layers import layer_groups
from ..errors import UserError

C = TypeVar("C", bound=Any)  # a model's config
WAYS = "full, head, last:N, bitfit, lora, adapter, prompt"


def tune(
    model: nn.Module,
    how: str,
    *,
    lora: LoRA | None = None,
    adapter: Bottleneck | None = None,
    prompt: Prompt | None = None,
    head: tuple[str, ...] = ("head",),
) -> nn.Module:
    """Freeze the parts that are not trained, and return the model.

    how: full; head, the parts whose names begin as in `head`; last:N, the last N layers and what follows them besides;
        bitfit, all biases (Ben Zaken et al. 2022); lora, adapter or prompt, of the settings given.
    """
    added = {"lora": lora or LoRA(), "adapter": adapter or Bottleneck(), "prompt": prompt or Prompt()}
    if how in added:
        names = [name for name, _ in model.named_parameters()]
        return adapters.add(model, added[how], train=[part for part in head if any(n.startswith(part) for n in names)])
    last = re.fullmatch(r"last:(\d+)", how)
    if how not in ("full", "head", "bitfit") and not last:
        raise UserError(f"--tune {how}: there is no such way to train; there are: {WAYS}.")
    chosen = {name for name, _ in model.named_parameters() if how == "full" or name.startswith(head)}
    if how == "bitfit":
        chosen |= {name for name, _ in model.named_parameters() if name.endswith("bias")}
    if last:
        chosen |= set(_last_blocks(model, int(last[1])))
    if not chosen:
        raise UserError(f"--tune {how}: {type(model).__name__} has no such parameters to train.")
    for name, parameter in model.named_parameters():
        parameter.requires_grad = name in chosen
    return model


def initial_config(start: C, wanted: C, own: Sequence[str]) -> C:
    """The config of the model that training starts from; regularisation and the fields `own` are those of `wanted`."""
    regularisation = ("dropout", "attention_dropout", "drop_path", "checkpointing")
    encoder = replace(start.encoder, **{name: getattr(wanted.encoder, name) for name in regularisation})
    return replace(start, encoder=encoder, **{name: getattr(wanted, name) for name in own})


def initialize(model: nn.Module, start: nn.Module) -> nn.Module:
    """Give a model the weights of another of the same shape; the head keeps its own."""
    if adapters.names(start):
        raise UserError(
            "The model to start from has an adapter beside its weights: start from a run that was tuned in another way "
            "(a LoRA is merged unless layers share weights), or from the model that this run started from."
        )
    load(model, start.state_dict(), fresh=("head.",))
    return model


def merge_adapters(model: nn.Module) -> nn.Module:
    """Merge each LoRA into the weights and unfreeze all parameters; other adapters stay."""
    for name in adapters.names(model):
        if all(
            isinstance(part, adapters.LoRAAdapter) and part.num_layers == 1 for _, part in adapters.modules(model, name)
        ):
            adapters.merge(model, name)
            adapters.remove(model, name)
    return model.requires_grad_(True)


def _last_blocks(model: nn.Module, count: int) -> Iterator[str]:
    """The parameters of the last blocks of each encoder, and of what follows them."""
    layers = layer_groups(model)
    blocks = {layer.distance for layer in layers if layer.name not in ("embeddings", "output")}
    if not 1 <= count <= len(blocks):
        raise UserError(f"--tune last:{count}: the encoder has {len(blocks)} layers of its own to choose from.")
    for layer in layers:
        if layer.distance <= count and layer.name != "embeddings":
            yield from layer.parameters
