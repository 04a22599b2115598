"""What AdamW may touch, how fast, and when."""

import math
import re

import torch
from torch import nn

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
    depth = 1 + max((_block(name) for name, _ in model.named_parameters()), default=0)
    groups: dict[tuple[int, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            decays = parameter.ndim > 1 and not getattr(parameter, "no_decay", False)
            groups.setdefault((_layer(name, depth), decays), []).append(parameter)
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


def _block(name: str) -> int:
    found = re.match(r"(?:model\.)?encoder\.blocks\.(\d+)\.", name)
    return int(found[1]) if found else -1


def _layer(name: str, depth: int) -> int:
    """0: the embedding; 1 to depth: the blocks; depth + 1: all behind them (layer-wise decay, BEiT).

    A model in another is its `model` (masked autoencoding).
    """
    if name.removeprefix("model.").startswith(("embed.", "encoder.input_norm.")):
        return 0
    block = _block(name)
    return block + 1 if block >= 0 else depth + 1
