"""What a checkpoint of transformers is made of: its config, the class that it is of, and its weights by their names."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub import snapshot_download
from jaxtyping import Shaped
from torch import Tensor, nn

from core import UserError
from core.checkpoints.files import plain_state, read_state
from core.files import first_line

from .sentences import Sentences, read_sentences

State = dict[str, Shaped[Tensor, "..."]]

# What checkpoints that were made from TensorFlow's call the parts of a norm.
LEGACY = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}
BUFFERS = ("position_ids", "token_type_ids", "inv_freq")  # made anew by each model
WORDS = ("embeddings.word_embeddings.weight", "embeddings.tok_embeddings.weight")
WANTED = ("*.json", "*.txt", "*.model", "*model*.safetensors")


class Checkpoint(NamedTuple):
    config: Any
    """transformers' own."""
    kind: str
    """Name of transformers' class."""
    weights: Mapping[str, Any]
    """As they were saved."""
    sentences: Sentences | None = None
    """Where it is a model of sentence-transformers."""


def of_module(module: nn.Module) -> Checkpoint:
    return Checkpoint(getattr(module, "config", None), type(module).__name__, module.state_dict())


def of_folder(folder: Path) -> Checkpoint:
    try:
        from transformers import AutoConfig
    except ImportError:
        raise UserError("Checkpoints of transformers need the package: pip install transformers.") from None
    sentences = read_sentences(folder)
    folder = sentences.folder if sentences else folder
    try:
        config = AutoConfig.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except Exception as error:  # each kind of config has its own for values that it refuses
        raise UserError(f"transformers cannot read the config in {folder}: {first_line(error)}.") from None
    kinds = config.architectures or [""]
    if not isinstance(kinds, list) or not isinstance(kinds[0], str):
        raise UserError(f"{folder / 'config.json'}: architectures must be a list of names, not {kinds!r}.")
    return Checkpoint(config, kinds[0], read_state(folder), sentences)


def download(name: str) -> Path:
    """A model on the hub, without the weights of other libraries."""
    try:
        folder = Path(snapshot_download(name, allow_patterns=WANTED))
        if not list(folder.rglob("*.safetensors")):
            snapshot_download(name, allow_patterns="*pytorch_model*")
    except Exception as error:  # of the connection, of the name, of what is there
        raise UserError(f"The model {name} cannot be loaded from the hub: {first_line(error)}.") from None
    return folder


def plain_names(weights: Mapping[str, Any], prefix: str) -> State:
    """Weights as the base model calls them, whatever was put around it; without buffers that each model makes anew.

    prefix: of the base model's weights in one with a head.
    """
    state = {}
    for name, tensor in plain_state(weights, wanted=()).items():
        for old, new in LEGACY.items():
            name = name.replace(old, new)
        if name.rpartition(".")[2] not in BUFFERS:
            state[name] = tensor
    words = min((name for name in state if name.endswith(WORDS)), key=len, default="")
    around = words.removesuffix(WORDS[0]).removesuffix(WORDS[1]).removesuffix(prefix)
    return {name.removeprefix(around).removeprefix(prefix): tensor for name, tensor in state.items()}
