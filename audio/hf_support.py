"""What the readers of configs of transformers share."""

from collections.abc import Mapping
from typing import Literal

from jaxtyping import Shaped
from torch import Tensor

from core import UserError
from core.encoder.config import Activation

Head = Literal["none", "classes"]
State = Mapping[str, Shaped[Tensor, "..."]]

ACTIVATIONS: dict[str, Activation] = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "relu": "relu",
}


def check_supported(supported: bool, what: str) -> None:
    if not supported:
        raise UserError(f"from_hf does not support {what}.")


def activation(name: str) -> Activation:
    check_supported(name in ACTIVATIONS, f"activation {name}")
    return ACTIVATIONS[name]
