"""What the readers of checkpoints of transformers share, whatever their modality."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from ..encoder.config import Activation
from ..errors import UserError
from ..files import check_file, first_line

A = TypeVar("A")

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


def activation_of(name: str, known: Mapping[str, A] = ACTIVATIONS) -> A:
    """Ours for the name of an activation. known: those that there is an equal of."""
    check_supported(name in known, f"activation {name!r}")
    return known[name]


def stock_config(read: Callable[..., Any], folder: Path) -> tuple[Any, str]:
    """The config in a directory of transformers, and the name of the model's class ("" if none is named).

    read: `transformers.AutoConfig.from_pretrained`.
    """
    check_file(folder / "config.json", "config")
    try:
        config = read(str(folder), local_files_only=True, trust_remote_code=False)
    except Exception as error:  # each class of config raises its own kind for values that it refuses
        raise UserError(f"transformers cannot read the config in {folder}: {first_line(error)}.") from None
    kinds = config.architectures or [""]
    if not isinstance(kinds, list) or not isinstance(kinds[0], str):
        raise UserError(f"{folder / 'config.json'}: architectures must be a list of names, not {kinds!r}.")
    return config, kinds[0]
