"""What a directory of sentence-transformers says of the vectors that its model makes of texts."""

from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

from pydantic import ConfigDict, with_config
from typing_extensions import TypedDict

from core import UserError
from core.files import read_json

# Older versions write the pooling as a flag for each of its kinds.
FLAGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
FAMILIES = ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")  # its files are named by
SERVED = (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"])


T = TypeVar("T")


@with_config(ConfigDict(extra="allow"))
class Whole(TypedDict, total=False):
    """config_sentence_transformers.json, as far as it is read."""

    prompts: dict[str, str] | None
    default_prompt_name: str | None


@with_config(ConfigDict(extra="allow"))
class Reading(TypedDict, total=False):
    """sentence_bert_config.json, as far as it is read."""

    max_seq_length: int | None
    do_lower_case: bool | None
    transformer_task: str


class Sentences(NamedTuple):
    folder: Path
    """Of the transformer itself."""
    pool: Literal["cls", "mean", "max"]
    norm: bool
    """Whether vectors have length 1."""
    prompt: str
    """Put before every text."""
    max_length: int | None
    """Most tokens of a text, with its frame; None: what the model takes."""
    lowercase: bool
    """Whether texts are read in lower case, whatever the tokenizer does."""


def read_sentences(folder: Path) -> Sentences | None:
    """None of any other directory, and of a model that makes no vectors (a cross-encoder).

    What has no equal here is an error that names it.
    """
    if not (folder / "modules.json").is_file():
        return None
    modules = read_json(folder / "modules.json", list[dict[str, Any]])
    kinds = [str(module.get("type")).rpartition(".")[2] for module in modules]
    if kinds == ["Transformer"]:
        return None
    if kinds not in SERVED:
        raise UserError(
            f"{folder} has the modules {', '.join(kinds)}; only Transformer, Pooling and perhaps Normalize are served."
        )
    folders = [folder / str(module.get("path", "")) for module in modules]
    transformer, pooling = folders[0], read_json(folders[1] / "config.json")
    names = (f"sentence_{family}_config.json" for family in FAMILIES)
    reads = next((found for name in names if (found := _settings(transformer / name, Reading))), {})
    whole = _settings(folder / "config_sentence_transformers.json", Whole)
    prompts, default = whole.get("prompts"), whole.get("default_prompt_name")
    if default is not None and default not in (prompts or ()):
        raise UserError(f"{folder}: there is no prompt {default!r}, which is to be the default one.")
    prompt = prompts[default] if default is not None else ""
    task = reads.get("transformer_task", "feature-extraction")
    normalised = _settings(folders[-1] / "config.json", dict).get("module_input_name", "sentence_embedding")
    unequal = (
        (task != "feature-extraction", f"the task {task}"),
        (prompt and not pooling.get("include_prompt", True), "a prompt that is left out of the pooling"),
        (whole.get("truncate_dim"), "a vector that is cut short (truncate_dim)"),
        (normalised != "sentence_embedding", f"a norm of {normalised}"),
    )
    if wrong := [what for found, what in unequal if found]:
        raise UserError(f"{folder}: {wrong[0]} has no equal here.")
    longest = reads.get("max_seq_length") or _settings(transformer / "tokenizer_config.json", dict).get(
        "model_max_length"
    )
    return Sentences(
        folder=transformer,
        pool=_pool(pooling, folder),
        norm="Normalize" in kinds,
        prompt=prompt,
        max_length=longest if isinstance(longest, int) else None,
        lowercase=bool(reads.get("do_lower_case", False)),
    )


def _pool(pooling: dict[str, Any], folder: Path) -> Literal["cls", "mean", "max"]:
    found = pooling.get("pooling_mode", [mode for flag, mode in FLAGS.items() if pooling.get(flag)] or "mean")
    modes = found if isinstance(found, list) else [found]
    if len(modes) != 1 or modes[0] not in ("cls", "mean", "max"):
        raise UserError(f"{folder} pools by {' and '.join(map(str, modes))}; only cls, mean or max is served.")
    return modes[0]


def _settings(path: Path, kind: type[T]) -> T:
    return read_json(path, kind) if path.is_file() else kind()
