"""Attention maps of whole models: the rollout over their layers, and the map of their patches."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from .recording import record_attention


def attention_rollout(layers: Sequence[Float[Tensor, "b h n n"]]) -> Float[Tensor, "b n n"]:
    """How much of each input token (column) is in each output token (row), over a stack of layers.

    Abnar and Zuidema 2020, section 3: heads averaged, half of each layer for the residual path.
    """
    flow = torch.eye(layers[0].shape[-1], device=layers[0].device)
    for weights in layers:
        flow = 0.5 * flow + 0.5 * weights.float().mean(dim=1) @ flow
    return flow


@torch.no_grad()
def attention_map(model: Any, *inputs: Tensor) -> Float[Tensor, "b rows columns"]:
    """How much of each patch reaches the pooled vector: attention rolled out over all layers; each map's peak is 1.

    model: a module with `tokens` (with a grid), `features` and a config of `pool` and `encoder`, as ViT and AST have.
    """
    model.eval()
    with record_attention() as calls:
        model.features(*inputs)
    tokens = model.tokens(*inputs)
    depth = model.config.encoder.depth
    flow = attention_rollout([call.weights for call in calls[:depth]])
    prompt = flow.shape[1] - tokens.x.shape[1]  # tokens of an adapter, before the others
    flow = flow[:, prompt:, prompt:]
    match model.config.pool:
        case "cls":
            reached = flow[:, 0]
        case "prefix":
            reached = flow[:, : tokens.prefix].mean(dim=1)
        case "attention":
            reached = (calls[depth].weights.mean(dim=1) @ flow)[:, 0]
        case _:
            reached = flow[:, tokens.prefix :].mean(dim=1)
    maps = reached[:, tokens.prefix :].unflatten(1, tokens.grid)
    return maps / maps.amax(dim=(1, 2), keepdim=True)
