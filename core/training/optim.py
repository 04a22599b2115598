"""What AdamW may touch, how fast, and when."""

import math

import torch
from torch import nn

from ..encoder.encoder import Encoder
from ..errors import UserError
from .config import TrainConfig


def learning_rate(config: TrainConfig, step: int) -> float:
    """Linear warm-up, then a cosine: a pure function of the step (counted from 0)."""
    warmup = min(config.warmup, config.steps)
    if step < warmup:
        return config.lr * (step + 1) / warmup
    progress = (step - warmup) / max(config.steps - warmup, 1)
    return config.min_lr + (config.lr - config.min_lr) * (1 + math.cos(math.pi * progress)) / 2


def make_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW over groups by weight decay and by depth. A group's `lr_scale` multiplies the learning rate, which is 0
    before the step `starts`."""
    layers = layers_of(model)
    depth = max(layers.values()) - 1
    if depth < 1 and (config.layer_decay < 1 or config.unfreeze):
        option = "unfreeze" if config.unfreeze else "layer-decay"
        kind = type(model).__name__
        raise UserError(f"--train.{option} has no effect on {kind}, which has no encoder: leave it out.")
    groups: dict[tuple[int, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            decays = parameter.ndim > 1 and not getattr(parameter, "no_decay", False)
            groups.setdefault((layers[name], decays), []).append(parameter)
    return torch.optim.AdamW(
        [
            {
                "params": parameters,
                "weight_decay": config.weight_decay if decays else 0.0,
                "lr_scale": config.layer_decay ** (depth + 1 - layer),
                "starts": config.unfreeze * (depth + 1 - layer),
            }
            for (layer, decays), parameters in sorted(groups.items(), key=lambda item: item[0])
        ],
        lr=config.lr,
        betas=config.betas,
        fused=True,
    )


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float, step: int) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"] if step >= group["starts"] else 0.0


def layers_of(model: nn.Module) -> dict[str, int]:
    """For layer-wise decay (BEiT), the layer of each parameter, by its name.

    0 is what stands before the encoder, its embedding; 1 to the depth its blocks; the next number all that is behind
    them. Encoders side by side count alike. A model in another is its `model` (masked autoencoding), and all else of
    that is behind it.
    """
    inner = "model." if isinstance(getattr(model, "model", None), nn.Module) else ""
    encoders = {f"{path}." for path, module in model.named_modules() if isinstance(module, Encoder)}
    encoders = {path for path in encoders if path.startswith(inner)}
    blocks = {
        f"{path}blocks.{number}.": number + 1
        for path in encoders
        for number in range(len(model.get_submodule(f"{path}blocks")))
    }
    last, found, before = max(blocks.values(), default=0) + 1, {}, bool(encoders)
    for name, _ in model.named_parameters():
        within = next((path for path in encoders if name.startswith(path)), None)
        if within is None:
            found[name] = 0 if before and name.startswith(inner) else last
            continue
        before = False  # modules are registered in the order in which they are used
        block = next((layer for path, layer in blocks.items() if name.startswith(path)), None)
        found[name] = block or (0 if name.startswith(f"{within}input_norm.") else last)
    return found
