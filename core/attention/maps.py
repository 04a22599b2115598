"""Attention maps of whole models: the rollout over their layers, and the map of their patches."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
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
def attention_map(
    model: Any, *inputs: Tensor | Sequence[Tensor]
) -> Float[Tensor, "b rows columns"] | list[Float[Tensor, "_rows _columns"]]:
    """How much of each patch reaches the pooled vector: attention rolled out over all layers; each map's peak is 1.

    A list of inputs of any sizes has a list of maps.

    model: a module with `tokens`, `features` and a config of `pool` and `encoder`, as ViT and AST have. Tokens
        without a grid are one row.
    """
    model.eval()
    with record_attention() as calls:
        model.features(*inputs)
    tokens = model.tokens(*inputs)
    how, depth = model.config.pool, model.config.encoder.depth
    layers, pooling = calls[:depth], calls[depth:]
    if tokens.packing is None:
        weights = [call.weights for call in layers]
        grid = tokens.grid or (1, tokens.body.shape[1])
        return _pooled_map(weights, tokens.prefix, grid, how, [call.weights for call in pooling])
    of_layers, of_pooling = ([call.parts for call in each] for each in (layers, pooling))
    return [
        _pooled_map(
            [parts[number].weights for parts in of_layers],
            place.prefix,
            place.grid or (1, place.length - place.prefix),
            how,
            [parts[number].weights for parts in of_pooling],
        )[0]
        for number, place in enumerate(tokens.packing)
    ]


def _pooled_map(
    layers: Sequence[Float[Tensor, "b h n n"]],
    prefix: int,
    grid: tuple[int, int],
    how: str,
    pooling: Sequence[Float[Tensor, "b h 1 m"]],
) -> Float[Tensor, "b rows columns"]:
    """The map of sequences of one size, by the attention weights of the layers, and of the pooling by attention."""
    flow = attention_rollout(layers)
    length = prefix + grid[0] * grid[1]
    flow = flow[:, -length:, -length:]  # without the tokens of an adapter, which come before the others
    reached = (pooling_weights(how, prefix, length, pooling)[:, None].to(flow) @ flow)[:, 0]
    maps = reached[:, prefix:].unflatten(1, grid)
    return maps / maps.amax(dim=(1, 2), keepdim=True)


def pooling_weights(
    how: str, prefix: int, length: int, pooling: Sequence[Float[Tensor, "b h 1 m"]] = ()
) -> Float[Tensor, "b n"]:
    """How much of each of `length` tokens is in the pooled vector; of a maximum, as of a mean; of several side by side,
    as of their mean.

    how: of the model's config. prefix: class and register tokens. pooling: the weights of pooling by attention.
    """
    weights = torch.zeros(1, length)
    match how:
        case "cls":
            weights[:, 0] = 1
        case "last":
            weights[:, -1] = 1
        case "prefix" | "each_prefix":
            weights[:, :prefix] = 1 / prefix
        case "cls_mean":
            weights[:, 0] = 1 / 2
            weights[:, prefix:] += 1 / 2 / (length - prefix)
        case "attention":
            attended = pooling[0].float().mean(dim=1)[:, 0]  # of all tokens, or of those after the prefix
            weights = F.pad(attended, (length - attended.shape[1], 0))
        case _:
            weights[:, prefix:] = 1 / (length - prefix)
    return weights
