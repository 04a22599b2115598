"""The optimiser AdamW: its learning rate at each step, for each layer, and the weights that decay."""

import math

import torch
from torch import nn

from ..encoder.layers import layer_groups
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
    """AdamW. Parameters are grouped by layer and by whether they decay; the learning rate of a group is multiplied by
    its `lr_scale`, and 0 before the step `starts`."""
    layers = layer_groups(model)
    if all(layer.distance == 0 for layer in layers) and (config.layer_decay < 1 or config.unfreeze):
        option = "unfreeze" if config.unfreeze else "layer-decay"
        kind = type(model).__name__
        raise UserError(f"--train.{option} has no effect on {kind}, which has no encoder: leave it out.")
    groups: dict[tuple[int, bool], list[nn.Parameter]] = {}
    for layer in layers:
        for parameter in layer.parameters.values():
            if parameter.requires_grad:
                decays = parameter.ndim > 1 and not getattr(parameter, "no_decay", False)
                groups.setdefault((layer.distance, decays), []).append(parameter)
    return torch.optim.AdamW(
        [
            {
                "params": parameters,
                "weight_decay": config.weight_decay if decays else 0.0,
                "lr_scale": config.layer_decay**distance,
                "starts": config.unfreeze * distance,
            }
            for (distance, decays), parameters in groups.items()
        ],
        lr=config.lr,
        betas=config.betas,
        fused=True,
    )


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float, step: int) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"] if step >= group["starts"] else 0.0
