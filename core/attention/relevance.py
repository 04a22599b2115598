"""Attention weighted by gradients: what of it speaks for one output of the model.

Chefer, Gur and Wolf 2021, "Generic Attention-model Explainability for Interpreting Bi-Modal and Encoder-Decoder
Transformers", section 3.1, for self-attention.
"""

from collections.abc import Sequence

import torch
from einops import einsum
from jaxtyping import Float
from torch import Tensor

from .recording import AttentionCall


def output_gradients(score: Float[Tensor, ""], calls: Sequence[AttentionCall]) -> list[Float[Tensor, "b h n e"]]:
    """The gradient of a number by the output of each call, which `record_attention(values=True)` recorded; 0 where the
    number does not depend on it."""
    outs = [_recorded(call.out) for call in calls]
    return list(torch.autograd.grad(score, outs, allow_unused=True, materialize_grads=True))


def weight_gradients(call: AttentionCall, gradient: Float[Tensor, "b h n e"]) -> Float[Tensor, "b h n m"]:
    """The gradient of a number by the attention weights of a call; gradient: by the output, which is weights @ v."""
    return einsum(gradient, _recorded(call.v), "b h n e, b h m e -> b h n m")


def gradient_weighted(call: AttentionCall, gradient: Float[Tensor, "b h n e"]) -> Float[Tensor, "b h n m"]:
    """The weights that speak for a number, (gradient * weights)+ of each head; their mean is that of equation 5."""
    return (weight_gradients(call, gradient) * call.weights).clamp(min=0)


def relevance(layers: Sequence[Float[Tensor, "b h n n"]]) -> Float[Tensor, "b n n"]:
    """How relevant each input token (column) is to each output token (row), by `gradient_weighted` of the layers.

    Equation 6: each layer adds what its attention gathers from the relevance so far, which begins as the identity.
    """
    flow = torch.eye(layers[0].shape[-1], device=layers[0].device)
    for weights in layers:
        flow = flow + weights.float().mean(dim=1) @ flow
    return flow


def _recorded(t: Tensor | None) -> Tensor:
    if t is None:
        raise ValueError("The calls were recorded without their values: use record_attention(values=True).")
    return t
