"""Directories of sentence-transformers: how their models turn texts into sentence vectors."""

from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

from jaxtyping import Shaped
from pydantic import ConfigDict, with_config
from torch import Tensor
from typing_extensions import TypedDict

from core import UserError, convert
from core.checkpoints.files import plain_state, read_state
from core.files import read_json

Activation = Literal["tanh", "relu", "gelu", "none"]

# Older versions write one flag for each way of pooling.
FLAGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
FAMILIES = ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")  # in the names of its files
AFTER = ([], ["Normalize"], ["Dense"], ["Dense", "Normalize"])
"""What may follow the transformer and the pooling."""
ACTIVATIONS: dict[str, Activation] = {"Tanh": "tanh", "ReLU": "relu", "GELU": "gelu", "Identity": "none"}


T = TypeVar("T")
State = dict[str, Shaped[Tensor, "..."]]


class Dense(NamedTuple):
    """A dense layer after pooling."""

    folder: Path
    activation: Activation

    def weights(self) -> State:
        """Its weights under our keys; without a bias, one of zeros."""
        state = plain_state(read_state(self.folder), wanted=())
        weights = convert(state, {"linear.{p}": "sentence_dense.{p}"})
        if (weight := weights.get("sentence_dense.weight")) is not None:
            weights.setdefault("sentence_dense.bias", weight.new_zeros(len(weight)))
        return weights


@with_config(ConfigDict(extra="allow"))
class WholeModel(TypedDict, total=False):
    """The entries of config_sentence_transformers.json that are read."""

    prompts: dict[str, str] | None
    default_prompt_name: str | None


@with_config(ConfigDict(extra="allow"))
class Preprocessing(TypedDict, total=False):
    """The entries of sentence_bert_config.json that are read."""

    max_seq_length: int | None
    do_lower_case: bool | None
    transformer_task: str


class Sentences(NamedTuple):
    folder: Path
    """Where the transformer itself is."""
    pool: Literal["cls", "mean", "max"]
    dense: Dense | None
    norm: bool
    """Whether vectors are normalised to length 1."""
    prompt: str
    """Text put before every text."""
    max_length: int | None
    """Most tokens of a text, including special tokens; None: the model's limit."""
    lowercase: bool
    """Whether texts are lowercased before they reach the tokenizer."""


def read_sentences(folder: Path) -> Sentences | None:
    """None for any other directory, and for a model without sentence vectors (a cross-encoder).

    A setting that we do not support is an error that names it.
    """
    if not (folder / "modules.json").is_file():
        return None
    modules = read_json(folder / "modules.json", list[dict[str, Any]])
    kinds = [str(module.get("type")).rpartition(".")[2] for module in modules]
    if kinds == ["Transformer"]:
        return None
    if kinds[:2] != ["Transformer", "Pooling"] or kinds[2:] not in AFTER:
        raise UserError(
            f"{folder} has the modules {', '.join(kinds)}; Transformer and Pooling are supported, and after them Dense "
            "and Normalize."
        )
    folders = [folder / str(module.get("path", "")) for module in modules]
    transformer, pooling = folders[0], read_json(folders[1] / "config.json")
    names = (f"sentence_{family}_config.json" for family in FAMILIES)
    reads = next((entries for name in names if (entries := _settings(transformer / name, Preprocessing))), {})
    whole = _settings(folder / "config_sentence_transformers.json", WholeModel)
    prompts, default = whole.get("prompts"), whole.get("default_prompt_name")
    if default is not None and default not in (prompts or ()):
        raise UserError(f"{folder}: the default prompt {default!r} is not among its prompts.")
    prompt = prompts[default] if prompts and default is not None else ""
    task = reads.get("transformer_task", "feature-extraction")
    dense = _settings(folders[2] / "config.json", dict) if "Dense" in kinds else {}
    activation = str(dense.get("activation_function", "Tanh")).rpartition(".")[2]
    inputs = {dense.get(f"module_{end}_name") or "sentence_embedding" for end in ("input", "output")}
    normalised = _settings(folders[-1] / "config.json", dict).get("module_input_name", "sentence_embedding")
    unsupported = (
        (task != "feature-extraction", f"the task {task}"),
        (prompt and not pooling.get("include_prompt", True), "a prompt that the pooling leaves out"),
        (whole.get("truncate_dim"), "a truncated vector (truncate_dim)"),
        ("Normalize" in kinds and normalised != "sentence_embedding", f"a norm of {normalised}"),
        (inputs != {"sentence_embedding"}, f"a dense layer of {' and '.join(sorted(inputs))}"),
        (activation not in ACTIVATIONS, f"a dense layer with activation {activation}"),
        (dense.get("use_residual"), "a dense layer with a residual"),
    )
    if wrong := [what for present, what in unsupported if present]:
        raise UserError(f"{folder}: {wrong[0]} is not supported.")
    longest = reads.get("max_seq_length") or _settings(transformer / "tokenizer_config.json", dict).get(
        "model_max_length"
    )
    return Sentences(
        folder=transformer,
        pool=_pool(pooling, folder),
        dense=Dense(folders[2], ACTIVATIONS[activation]) if dense else None,
        norm="Normalize" in kinds,
        prompt=prompt,
        max_length=longest if isinstance(longest, int) else None,
        lowercase=bool(reads.get("do_lower_case", False)),
    )


def _pool(pooling: dict[str, Any], folder: Path) -> Literal["cls", "mean", "max"]:
    mode = pooling.get("pooling_mode", [mode for flag, mode in FLAGS.items() if pooling.get(flag)] or "mean")
    modes = mode if isinstance(mode, list) else [mode]
    if len(modes) != 1 or modes[0] not in ("cls", "mean", "max"):
        raise UserError(f"{folder} pools by {' and '.join(map(str, modes))}; only cls, mean and max are supported.")
    return modes[0]


def _settings(path: Path, kind: type[T]) -> T:
    return read_json(path, kind) if path.is_file() else kind()
