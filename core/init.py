"""How weights start, in one place.

Parameters that weight decay must spare are tagged here, where they are made (`core/training/optim.py` reads the tag).
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

STD = 0.02  # BERT and ViT: a normal cut off at two standard deviations


def init_weights(model: nn.Module) -> None:
    """Fresh weights for the standard layers of `model`; its own parameters (`learned`, `constant`) start as made."""
    for module in model.modules():
        match module:
            case nn.Linear() | nn.Conv1d() | nn.Conv2d() | nn.Embedding():
                nn.init.trunc_normal_(module.weight, std=STD, a=-2 * STD, b=2 * STD)
                if getattr(module, "bias", None) is not None:
                    nn.init.zeros_(module.bias)
                if getattr(module, "padding_idx", None) is not None:
                    with torch.no_grad():
                        module.weight[module.padding_idx] = 0
            case nn.LayerNorm() | nn.RMSNorm():
                nn.init.ones_(module.weight)
                if getattr(module, "bias", None) is not None:
                    nn.init.zeros_(module.bias)


def learned(*shape: int) -> Float[nn.Parameter, "..."]:
    """A learned vector or table of vectors (class token, positions): small and random, spared by weight decay."""
    return _no_decay(nn.Parameter(nn.init.trunc_normal_(torch.empty(*shape), std=STD, a=-2 * STD, b=2 * STD)))


def constant(*shape: int, value: float) -> Float[nn.Parameter, "..."]:
    """A learned gain that starts at `value`, spared by weight decay."""
    return _no_decay(nn.Parameter(torch.full(shape, value)))


def _no_decay(parameter: Tensor) -> Tensor:
    parameter.no_decay = True
    return parameter
