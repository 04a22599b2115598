"""The initial values of weights, in one place.

Parameters without weight decay are marked here, where they are made (`core/training/optim.py` reads the mark).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..scoped import Scoped

STD = 0.02  # of embeddings and positions, as in BERT and ViT
WIDTH = 768  # the width at which a projection's standard deviation is STD too; it falls with the root of the fan-in


def init_weights(model: nn.Module) -> None:
    """Fresh weights for the standard layers of `model`; its own parameters (`learned`, `constant`) start as made."""
    for module in model.modules():
        match module:
            case nn.Linear() | nn.Conv1d() | nn.Conv2d():
                fan_in = module.weight[0].numel()
                _truncated_normal(module.weight, STD * (WIDTH / fan_in) ** 0.5)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            case nn.Embedding():
                _truncated_normal(module.weight, STD)
                if module.padding_idx is not None:
                    nn.init.zeros_(module.weight.data[module.padding_idx])
            case nn.LayerNorm() | nn.RMSNorm():
                nn.init.ones_(module.weight)
                if isinstance(bias := getattr(module, "bias", None), Tensor):
                    nn.init.zeros_(bias)


def learned(*shape: int) -> Float[nn.Parameter, "..."]:
    """A learned vector or table of vectors (class token, positions): small and random, spared by weight decay."""
    return no_decay(nn.Parameter(_truncated_normal(torch.empty(*shape), STD)))


def constant(*shape: int, value: float) -> Float[nn.Parameter, "..."]:
    """A learned gain that starts at `value`, spared by weight decay."""
    return no_decay(nn.Parameter(torch.full(shape, value)))


def no_decay(parameter: nn.Parameter) -> nn.Parameter:
    """The parameter, spared by weight decay."""
    setattr(parameter, "no_decay", True)  # noqa: B010  # type checkers know no such attribute
    return parameter


NO_VALUES: Scoped[bool] = Scoped("whether weights are made without random values")


RANDOM = (
    *(Tensor.uniform_, Tensor.normal_, Tensor.erfinv_),
    *(nn.init.uniform_, nn.init.normal_, nn.init.trunc_normal_, nn.init.kaiming_uniform_),
)


class _NothingRandom(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in RANDOM:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))


@contextmanager
def without_random_values() -> Iterator[None]:
    """Inside, weights of new modules are whatever was in memory: for models whose weights are all loaded afterwards. It
    saves most of the time."""
    with NO_VALUES.set(True), _NothingRandom():
        yield


def _truncated_normal(tensor: Tensor, std: float) -> Tensor:
    return tensor if NO_VALUES.get() else nn.init.trunc_normal_(tensor, std=std, a=-2 * std, b=2 * std)
