"""What a checkpoint of transformers is made of: its config, the class that it is of, and its weights by their names."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from huggingface_hub import snapshot_download
from jaxtyping import Shaped
from safetensors.torch import load_file
from torch import Tensor, nn

from core import UserError, WeightsError
from core.files import check_file, first_line, read_json

from .sentences import Sentences, read_sentences

State = dict[str, Shaped[Tensor, "..."]]

# What DDP, torch.compile and FSDP put into names.
WRAPPERS = re.compile(r"(?<![^.])(?:module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
LEGACY = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}
BUFFERS = ("position_ids", "token_type_ids", "inv_freq")  # made anew by each model
WORDS = ("embeddings.word_embeddings.weight", "embeddings.tok_embeddings.weight")
WANTED = ("*.json", "*.txt", "*.model", "*model*.safetensors")


class Checkpoint(NamedTuple):
    config: Any
    """transformers' own."""
    kind: str
    """Name of transformers' class."""
    weights: State
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
    return Checkpoint(config, (config.architectures or [""])[0], read_weights(folder), sentences)


def download(name: str) -> Path:
    """A model on the hub, without the weights of other libraries."""
    try:
        folder = Path(snapshot_download(name, allow_patterns=WANTED))
        if not list(folder.rglob("*.safetensors")):
            snapshot_download(name, allow_patterns="*pytorch_model*")
    except Exception as error:  # of the connection, of the name, of what is there
        raise UserError(f"The model {name} cannot be loaded from the hub: {first_line(error)}.") from None
    return folder


def read_weights(folder: Path) -> State:
    """All tensors of a directory, whatever they are for."""
    readers: dict[str, Callable[[Path], State]] = {"model.safetensors": load_file, "pytorch_model.bin": _unpickled}
    for name, read in readers.items():
        index = folder / f"{name}.index.json"
        if not (folder / name).exists() and not index.exists():
            continue
        parts = [name] if (folder / name).exists() else sorted(set(_parts(index)))
        state: State = {}
        for part in parts:
            check_file(folder / part, "file of weights")
            try:
                state |= read(folder / part)
            except Exception as error:  # of safetensors, of pickle, of what a damaged pickle makes of it
                raise UserError(f"The weights in {folder / part} cannot be read: {first_line(error)}.") from None
        return state
    raise UserError(f"{folder} holds no weights that are read here: model.safetensors or pytorch_model.bin.")


def _parts(index: Path) -> list[str]:
    parts = read_json(index).get("weight_map")
    if not isinstance(parts, dict) or not parts:
        raise UserError(f"{index} names no files of weights.")
    return [str(part) for part in parts.values()]


def _unpickled(file: Path) -> State:
    """Tensors alone: a pickle of anything else could run a program."""
    state = torch.load(file, map_location="cpu", weights_only=True)
    state = state.get("state_dict", state) if isinstance(state, dict) else {"": state}
    if wrong := [key for key, value in state.items() if not isinstance(value, Tensor)]:
        raise ValueError(f"{wrong[0]!r} in it is no tensor")
    return dict(state)


def plain_names(state: State, prefix: str) -> State:
    """Weights as the base model calls them, whatever was put around it; without buffers that each model makes anew.

    prefix: of the base model's weights in one with a head.
    """
    plain: State = {}
    for key, tensor in state.items():
        name = WRAPPERS.sub("", key)
        for old, new in LEGACY.items():
            name = name.replace(old, new)
        if name.rpartition(".")[2] not in BUFFERS:
            if name in plain:
                raise WeightsError(f"The checkpoint holds {name} twice, once as {key}.")
            plain[name] = tensor
    words = min((name for name in plain if name.endswith(WORDS)), key=len, default="")
    around = words.removesuffix(WORDS[0]).removesuffix(WORDS[1]).removesuffix(prefix)
    return {name.removeprefix(around).removeprefix(prefix): tensor for name, tensor in plain.items()}
