"""Changes of trained encoders in place: layers that share weights or no longer do, and sparse attention."""

import copy
import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from ..errors import UserError
from ..sparse import Pattern
from .blocks import Block
from .config import check_sharing, per_layer
from .encoder import Encoder


def unshare(model: nn.Module) -> nn.Module:
    """Give each layer its own copy of the weights that it shares; the model itself, changed. Outputs stay equal."""
    for encoder in _encoders(model, "unshare"):
        blocks = []
        for layer in range(encoder.config.depth):
            block: Any = copy.deepcopy(encoder.blocks[layer // encoder.span])
            for module in block.modules():
                if hasattr(module, "only_layer"):
                    module.only_layer(layer % encoder.span)
            block.span = 1
            blocks.append(block)
        _regroup(encoder, blocks, None)
    return _configured(model)


@torch.no_grad()
def share(model: nn.Module, groups: int = 1) -> nn.Module:
    """Let each group of successive layers share one block, the mean of theirs (ALBERT); the model itself, changed."""
    if any(hasattr(module, "adapters") for module in model.modules()):
        raise UserError("share: merge or remove the adapters first.")
    for encoder in _encoders(unshare(model), "share"):
        check_sharing(encoder.config, groups)
        depth = encoder.config.depth
        blocks = []
        for members in zip(*[iter(encoder.blocks)] * (depth // groups), strict=True):
            shapes = [{name: p.shape for name, p in block.named_parameters()} for block in members]
            if any(other != shapes[0] for other in shapes):
                raise UserError("share: layers of different shapes cannot share weights.")
            for parameters in zip(*(block.parameters() for block in members), strict=True):
                parameters[0].copy_(torch.stack(parameters).mean(dim=0))
            members[0].span = depth // groups
            blocks.append(members[0])
        _regroup(encoder, blocks, groups)
    return _configured(model)


def _regroup(encoder: Encoder, blocks: list[Block], groups: int | None) -> None:
    encoder.blocks = nn.ModuleList(blocks)
    encoder.config = replace(encoder.config, shared_groups=groups)
    encoder.span = encoder.config.depth // len(blocks)


def sparsify(model: nn.Module, patterns: Pattern | str | Sequence[Pattern | str | None] | None) -> nn.Module:
    """Let a model attend by patterns (per layer, tiled), with the same weights; the model itself, changed."""
    given: tuple = tuple(patterns) if isinstance(patterns, list | tuple) else (patterns,)
    if wrong := next((p for p in given if not isinstance(p, Pattern | str | None)), None):
        raise UserError(f"sparsify: a pattern is a Pattern, its text or None, not a {type(wrong).__name__}.")
    parsed = tuple(Pattern.parse(p) if isinstance(p, str) else p for p in given)
    for encoder in _encoders(model, "sparsify"):
        _warn_of_later_tokens(encoder, parsed)
        encoder.config = replace(encoder.config, patterns=parsed if len(parsed) != 1 else parsed[0])
    return _configured(model)


def _warn_of_later_tokens(encoder: Encoder, patterns: tuple[Pattern | None, ...]) -> None:
    """A model that was trained without later tokens (CLIP's text tower) has no use for them."""
    own = [per_layer(encoder.config.patterns, layer) for layer in range(encoder.config.depth)]
    shown = [pattern for pattern in patterns if pattern is None or not pattern.causal]
    if shown and all(each is not None and each.causal for each in own):
        warnings.warn(
            f"sparsify: the model attended to no later token, and with {shown[0] or 'dense attention'} it does: write "
            "Causal() & ... if it was trained so.",
            stacklevel=3,
        )


def _encoders(model: nn.Module, purpose: str) -> list[Encoder]:
    encoders = [module for module in model.modules() if isinstance(module, Encoder)]
    if not encoders:
        raise UserError(
            f"{purpose}: {type(model).__name__} has no core.Encoder; convert it first (from_timm, from_hf)."
        )
    return encoders


def _configured(model: Any) -> nn.Module:
    """The model, with the new config of its encoder in its own, or in those of its parts."""
    encoder = next(module for module in model.modules() if isinstance(module, Encoder))
    if model is not encoder:
        for part in [model] if hasattr(model.config, "encoder") else model.children():
            if isinstance(getattr(part, "encoder", None), Encoder):
                encoder = part.encoder
            if hasattr(getattr(part, "config", None), "encoder"):
                part.config = replace(part.config, encoder=encoder.config)
    return model
