"""Weights that are several in ViTs of other libraries, and one in ours."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

BIASES = (("q_proj.bias", "k_proj.bias"), ("query.bias", "key.bias"))


def mean_head(first: Tensor, second: Tensor) -> Tensor:
    """The mean of two classifiers of a token each, as one classifier of both tokens side by side."""
    return torch.cat([first, second], dim=1) / 2 if first.ndim == 2 else (first + second) / 2


def with_scales_of_one(weights: Mapping[str, Any]) -> dict[str, Any]:
    """Where attention alone has a gain (Sapiens2), the MLP gets one of ones: a block has both in our ViT, or none."""
    weights = dict(weights)
    for name in list(weights):
        if name.endswith(".gamma_1"):
            weights.setdefault(name.removesuffix("1") + "2", torch.ones_like(weights[name]))
    return weights


def with_key_biases(weights: Mapping[str, Any]) -> dict[str, Any]:
    """Where queries have a bias and keys have none, keys get one of zeros: they are biased together in our ViT."""
    weights = dict(weights)
    for name in list(weights):
        for query, key in BIASES:
            if name.endswith(query):
                weights.setdefault(name.removesuffix(query) + key, torch.zeros_like(weights[name]))
    return weights
