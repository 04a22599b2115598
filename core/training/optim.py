"""The optimisers: their learning rate at each step, for each layer, and the weights that decay."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from ..encoder.layers import layer_groups
from ..errors import UserError
from .config import TrainConfig


def learning_rate(config: TrainConfig, step: int) -> float:
    """Linear warm-up, then the schedule: a pure function of the step (counted from 0)."""
    warmup = min(config.warmup, config.steps)
    if step < warmup:
        return config.lr * (step + 1) / warmup
    progress = (step - warmup) / max(config.steps - warmup, 1)
    return config.min_lr + (config.lr - config.min_lr) * _height(config, progress)


def _height(config: TrainConfig, progress: float) -> float:
    """From 1 after the warm-up to 0 at the end; progress: the share of the steps between that are done."""
    match config.schedule:
        case "cosine":
            return (1 + math.cos(math.pi * progress)) / 2
        case "linear":
            return 1 - progress
        case "wsd":
            return min(1.0, (1 - progress) / config.cooldown)


def make_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """Parameters are grouped by layer, by whether they decay and by whether Muon takes them; the learning rate of a
    group is multiplied by its `lr_scale`, and 0 before the step `starts`."""
    layers = layer_groups(model)
    if all(layer.distance == 0 for layer in layers) and (config.layer_decay < 1 or config.unfreeze):
        option = "unfreeze" if config.unfreeze else "layer-decay"
        kind = type(model).__name__
        raise UserError(f"--train.{option} has no effect on {kind}, which has no encoder: leave it out.")
    groups: dict[tuple[int, bool, bool], list[nn.Parameter]] = {}
    for layer in layers:
        for parameter in layer.parameters.values():
            if parameter.requires_grad:
                decays = parameter.ndim > 1 and not getattr(parameter, "no_decay", False)
                muon = config.optimizer == "muon" and layer.is_block and decays and parameter.ndim == 2
                groups.setdefault((layer.distance, decays, muon), []).append(parameter)
    if config.optimizer == "muon" and not any(muon for _, _, muon in groups):
        raise UserError(
            f"--train.optimizer muon is for the matrices of an encoder's layers, and none of {type(model).__name__} is "
            "trained: use adamw."
        )
    settings = [
        {
            "params": parameters,
            "weight_decay": config.weight_decay if decays else 0.0,
            "lr_scale": config.layer_decay**distance,
            "starts": config.unfreeze * distance,
            "muon": muon,
        }
        for (distance, decays, muon), parameters in groups.items()
    ]
    if config.optimizer == "adamw":
        return torch.optim.AdamW(settings, lr=config.lr, betas=config.betas, fused=True)
    return MuonAndAdamW(settings, config)


def ema_decay(decay: float, updates: int) -> float:
    """The decay of the average after so many updates: it rises to `decay`, so that a short run's average does not keep
    the weights that it began with (as ExponentialMovingAverage of TensorFlow has it with `num_updates`)."""
    return min(decay, (1 + updates) / (10 + updates))


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float, step: int) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"] if step >= group["starts"] else 0.0


class MuonAndAdamW(torch.optim.Optimizer):
    """Muon (Jordan et al. 2024) for the groups with `muon`, AdamW for the others.

    Muon's steps are scaled to the size of AdamW's (Liu et al. 2025, section 2.2), so that both share one learning rate
    and one weight decay.
    """

    def __init__(self, groups: list[dict[str, Any]], config: TrainConfig):
        super().__init__(groups, {"lr": config.lr})
        muon, others = ([g for g in self.param_groups if g["muon"] is muon] for muon in (True, False))
        self.parts: list[torch.optim.Optimizer] = [
            torch.optim.Muon(muon, lr=config.lr, momentum=MUON_MOMENTUM, adjust_lr_fn="match_rms_adamw")
        ]
        if others:
            self.parts.append(torch.optim.AdamW(others, lr=config.lr, betas=config.betas, fused=True))
        # The groups of the parts, with the settings of each optimiser, are those of the whole.
        self.param_groups = [group for part in self.parts for group in part.param_groups]

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        if closure is not None:
            raise ValueError("This optimiser takes no closure.")
        for part in self.parts:
            part.state = self.state
            part.step()


MUON_MOMENTUM = 0.95
