"""ESM-2 and ESM C checkpoints on our model, with equal outputs."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from core import UserError, convert, load, sparsify
from core.checkpoints.files import plain_state, read_file, read_state
from core.checkpoints.keys import State, unfilled
from core.models.hub import (
    HUB,
    loader,
    loading,
    local_folder,
    model_folder,
    read_settings,
    settings_folder,
)
from core.models.stock import stock_config

from .alphabet import Alphabet, read_alphabet
from .esm import ESM
from .families import find_family

# Names of a norm's parameters in the ESM-2 that transformers 5 saves.
LEGACY = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}


@loader
def from_hf(source: str | Path | nn.Module, *, alphabet: Alphabet | None = None) -> ESM:
    """Our ESM with the weights of an ESM-2 or ESM C: the base model, or the one that predicts residues.

    source: of transformers a name on the hub, a local directory, or a module in memory; of EvolutionaryScale's esm
        package a file of weights (esmc_300m_2024_12_v0.pth), or a module in memory.
    alphabet: that of the source's vocab.txt if None, and its family's if it has none.
    """
    if isinstance(source, nn.Module):
        stock, kind, weights = getattr(source, "config", None), type(source).__name__, source.state_dict()
    elif Path(source).is_file():
        stock, kind, weights = None, "ESMC", plain_state(read_file(Path(source)), wanted=())
    else:
        stock, kind, weights, alphabet = _read(source, alphabet)
    family, head = find_family(kind)
    weights = _plain(weights)
    config = family.read(stock, weights, head, alphabet)
    converted = convert(weights, family.keys(config.encoder.depth))
    for norm in [key.removesuffix(".weight") for key in converted if key.endswith(".weight")]:
        if norm.endswith(family.without_bias):
            converted.setdefault(f"{norm}.bias", torch.zeros_like(converted[f"{norm}.weight"]))
    model = unfilled(lambda: ESM(config))
    load(model, converted, take=not isinstance(source, nn.Module))
    return model.eval()


def load_model(source: str, patterns: tuple[str, ...] = ()) -> ESM:
    """A model ready to use, on a GPU where there is one, attending by patterns if there are any.

    source: a directory that save_pretrained wrote (ours or transformers'), a file of weights of the esm package, or
        hf-hub:NAME, so that a misspelt directory is reported at once.
    """
    folder = model_folder(Path(source))
    if not (folder.exists() or source.startswith(HUB)):
        raise UserError(f"There is no directory {source}; a model of the hub is written hf-hub:NAME.")
    if folder.is_dir() and "model_type" not in read_settings(folder / "config.json"):
        model = ESM.from_run(folder)
    else:
        with loading(source):
            model = from_hf(source if source.startswith(HUB) else folder)
    if patterns:
        sparsify(model, patterns)
    return model.to("cuda" if torch.cuda.is_available() else "cpu")


def _read(source: str | Path, alphabet: Alphabet | None) -> tuple[Any, str, State, Alphabet | None]:
    """The config, the name of the class, the weights, and the alphabet: this one, or the source's, if there is one."""
    try:
        from transformers import AutoConfig
    except ImportError:
        raise UserError("from_hf needs the transformers package: pip install transformers.") from None
    folder = settings_folder(source)
    stock, kind = stock_config(AutoConfig.from_pretrained, folder)
    family, head = find_family(kind, str(source))
    vocabulary = folder / "vocab.txt"
    alphabet = alphabet or (read_alphabet(vocabulary) if vocabulary.is_file() else None)
    if not family.sizes_in_weights:
        family.read(stock, {}, head, alphabet)  # what is not supported is refused before weights are downloaded
    return stock, kind, plain_state(read_state(local_folder(source)), wanted=()), alphabet


def _plain(weights: State) -> State:
    """Without the prefix of the base model, and without the state of fused layers, which is not used here."""
    state = {}
    for key, tensor in weights.items():
        for old, new in LEGACY.items():
            key = key.replace(old, new)
        if not key.endswith("._extra_state"):
            state[key.removeprefix("esm.").removeprefix("esmc.")] = tensor
    return state
