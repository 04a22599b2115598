"""Checkpoints of transformers: the config, the name of the class, and the weights under their plain names."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from jaxtyping import Shaped
from torch import Tensor, nn

from core import UserError
from core.checkpoints.files import plain_state, read_state
from core.models.hub import local_folder, settings_folder
from core.models.stock import stock_config

from .sentences import Sentences, read_sentences

State = dict[str, Shaped[Tensor, "..."]]

# Names of a norm's parameters in checkpoints that were converted from TensorFlow.
LEGACY = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}
BUFFERS = ("position_ids", "token_type_ids", "inv_freq")  # which each model computes itself
WORDS = ("embeddings.word_embeddings.weight", "embeddings.tok_embeddings.weight", "embed_tokens.weight")


class Checkpoint(NamedTuple):
    config: Any
    """Of transformers."""
    kind: str
    """Name of transformers' class."""
    weights: Mapping[str, Any]
    """Under the keys of the file."""
    sentences: Sentences | None = None
    """For a model of sentence-transformers."""


def of_module(module: nn.Module) -> Checkpoint:
    return Checkpoint(getattr(module, "config", None), type(module).__name__, module.state_dict())


def of_source(source: str | Path, check: Callable[[Any, str], Any]) -> Checkpoint:
    """The checkpoint of a directory or of a name on the hub.

    check: called with the config and the name of the class ("" if it does not matter), before weights are downloaded.
    """
    try:
        from transformers import AutoConfig
    except ImportError:
        raise UserError(
            "Checkpoints of transformers need the transformers package: pip install transformers."
        ) from None
    folder = settings_folder(source)
    sentences = read_sentences(folder)
    folder = sentences.folder if sentences else folder
    stock, kind = stock_config(AutoConfig.from_pretrained, folder)
    check(stock, "" if sentences else kind)
    local_folder(source)
    return Checkpoint(stock, kind, read_state(folder), sentences)


def plain_names(weights: Mapping[str, Any], prefix: str) -> State:
    """Weights under the keys of the base model, without the prefixes of wrappers and without buffers.

    prefix: what stands before the base model's keys in a model with a head.
    """
    state = {}
    for name, tensor in plain_state(weights, wanted=()).items():
        for old, new in LEGACY.items():
            name = name.replace(old, new)
        if name.rpartition(".")[2] not in BUFFERS:
            state[name] = tensor
    words = min((name for name in state if name.endswith(WORDS)), key=len, default="")
    for ending in WORDS:
        words = words.removesuffix(ending)
    outer = words.removesuffix(prefix)
    return {name.removeprefix(outer).removeprefix(prefix): tensor for name, tensor in state.items()}
