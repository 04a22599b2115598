"""Stock model families of transformers: their names and heads, key map and config. A new family is added here."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from core import UserError
from core.checkpoints.keys import KeyMap

from . import hf_configs
from .hf_keys import ALBERT, BERT, DISTILBERT, MODERNBERT, ROBERTA
from .model import TextConfig

Head = Literal["classes", "tags", "spans", "tokens", "none"]

HEADS: dict[str, Head] = {
    "Model": "none",
    "ForSequenceClassification": "classes",
    "ForTokenClassification": "tags",
    "ForQuestionAnswering": "spans",
    "ForMaskedLM": "tokens",
    "ForPreTraining": "tokens",  # without its second head, which predicts whether two sentences follow each other
}


@dataclass(frozen=True)
class Family:
    """Stock models that differ in nothing but their size and their head."""

    name: str
    """What the names of transformers' classes begin with; in lower case the type in config.json."""
    read: Callable[[Any, str, bool], TextConfig]
    """Our config for that of transformers, a head, and whether the checkpoint has a pooler."""
    keys: KeyMap
    prefix: str
    """Of the base model's weights in a model with a head."""
    heads: dict[Head, tuple[str, ...]]
    """What the keys of each head's weights begin with."""


TAIL: dict[Head, tuple[str, ...]] = {"tags": ("classifier.",), "spans": ("qa_outputs.",)}

FAMILIES = (
    Family(
        "Bert",
        hf_configs.bert,
        BERT,
        "bert.",
        {**TAIL, "none": ("pooler.",), "classes": ("pooler.", "classifier."), "tokens": ("cls.predictions.",)},
    ),
    Family(
        "Roberta",
        hf_configs.roberta,
        ROBERTA,
        "roberta.",
        {
            **TAIL,
            "none": ("pooler.",),
            "classes": ("classifier.dense.", "classifier.out_proj."),
            "tags": ("classifier.weight", "classifier.bias"),
            "tokens": ("lm_head.",),
        },
    ),
    Family(
        "DistilBert",
        hf_configs.distilbert,
        DISTILBERT,
        "distilbert.",
        {**TAIL, "none": (), "classes": ("pre_classifier.", "classifier."), "tokens": ("vocab_",)},
    ),
    Family(
        "Albert",
        hf_configs.albert,
        ALBERT,
        "albert.",
        {**TAIL, "none": ("pooler.",), "classes": ("pooler.", "classifier."), "tokens": ("predictions.",)},
    ),
    Family(
        "ModernBert",
        hf_configs.modernbert,
        MODERNBERT,
        "model.",
        {
            **dict.fromkeys(("classes", "tags", "spans"), ("head.", "classifier.")),
            "none": (),
            "tokens": ("head.", "decoder."),
        },
    ),
)


def find_family(stock: Any, kind: str) -> tuple[Family, Head]:
    """The family and the head of a class of transformers; the base model of the config's type if no class is named."""
    for family in FAMILIES:
        if not kind and getattr(stock, "model_type", None) == family.name.lower():
            return family, "none"
        if kind.startswith(family.name) and (head := HEADS.get(kind.removeprefix(family.name))):
            return family, head
    given = kind or f"a model of type {getattr(stock, 'model_type', None)!r}"
    names = ", ".join(family.name for family in FAMILIES)
    raise UserError(f"from_hf takes {names} ({', '.join(HEADS)}), not {given}.")
