"""Stock model families of transformers: their names and heads, key map and config. A new family is added here."""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

from core import UserError
from core.checkpoints.keys import KeyMap

from . import hf_configs
from .hf_keys import (
    ALBERT,
    BERT,
    DEBERTA,
    DISTILBERT,
    ELECTRA,
    EUROBERT,
    GTE,
    JINA,
    MODERNBERT,
    MPNET,
    NOMIC,
    ROBERTA,
    XLM_ROBERTA_XL,
)
from .model import TextConfig

Head = Literal["classes", "tags", "spans", "tokens", "none"]

HEADS: dict[str, Head] = {
    "Model": "none",
    "ForSequenceClassification": "classes",
    "ForTokenClassification": "tags",
    "ForQuestionAnswering": "spans",
    "ForMaskedLM": "tokens",
}


@dataclass(frozen=True)
class Family:
    """Stock models that differ in nothing but their size and their head."""

    name: str
    """What the names of transformers' classes begin with; in lower case the type in config.json, without - and _."""
    read: Callable[[Any, str, bool], TextConfig]
    """Our config for that of transformers, a head, and whether the checkpoint has a pooler."""
    keys: KeyMap
    prefix: str
    """Of the base model's weights in a model with a head."""
    heads: dict[Head, tuple[str, ...]]
    """What the keys of each head's weights begin with."""
    pretraining: Head = "tokens"
    """What is read of a ...ForPreTraining."""


TAIL: dict[Head, tuple[str, ...]] = {"tags": ("classifier.",), "spans": ("qa_outputs.",)}

BERTS: dict[Head, tuple[str, ...]] = {
    **TAIL,
    "none": ("pooler.",),
    "classes": ("pooler.", "classifier."),
    "tokens": ("cls.predictions.",),
}
ROBERTAS: dict[Head, tuple[str, ...]] = {
    **TAIL,
    "none": ("pooler.",),
    "classes": ("classifier.dense.", "classifier.out_proj."),
    "tags": ("classifier.weight", "classifier.bias"),
    "tokens": ("lm_head.",),
}

FAMILIES = (
    Family("Bert", hf_configs.bert, BERT, "bert.", BERTS),
    Family("Roberta", hf_configs.roberta, ROBERTA, "roberta.", ROBERTAS),
    Family("XLMRoberta", hf_configs.roberta, ROBERTA, "roberta.", ROBERTAS),
    Family("Camembert", hf_configs.roberta, ROBERTA, "roberta.", ROBERTAS),
    Family("XLMRobertaXL", hf_configs.xlm_roberta_xl, XLM_ROBERTA_XL, "roberta.", ROBERTAS),
    Family("MPNet", hf_configs.mpnet, MPNET, "mpnet.", ROBERTAS),
    Family(
        "Electra",
        hf_configs.electra,
        ELECTRA,
        "electra.",
        {**ROBERTAS, "none": (), "tokens": ("generator_",)},
        pretraining="none",  # its head says which tokens were replaced: no one starts from it
    ),
    Family("DebertaV2", hf_configs.deberta, DEBERTA, "deberta.", {**BERTS, "none": ()}),  # and version 3
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
    Family("NomicBert", hf_configs.nomic, NOMIC, "nomic_bert.", BERTS),
    Family("Gte", hf_configs.gte, GTE, "gte.", {**BERTS, "tokens": ("lm_head.",)}),
    Family("JinaEmbeddingsV3", hf_configs.jina, JINA, "roberta.", ROBERTAS),
    Family(
        "EuroBert",
        hf_configs.eurobert,
        EUROBERT,
        "model.",
        {"none": (), "classes": ("dense.", "classifier."), "tags": ("classifier.",), "tokens": ("lm_head.",)},
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
    """The family and the head of a class of transformers; the base model of the config's type if no class is named, see
    `shown_head`."""
    model_type = str(getattr(stock, "model_type", None))
    for family in FAMILIES:
        if not kind and re.sub("[-_]", "", model_type) == family.name.lower():
            return family, "none"
        heads = {**HEADS, "ForPreTraining": family.pretraining}
        if kind.startswith(family.name) and (head := heads.get(kind.removeprefix(family.name))) in family.heads:
            return family, head
    given = kind or f"a model of type {model_type!r}"
    names = ", ".join(family.name for family in FAMILIES)
    raise UserError(f"from_hf takes {names} ({', '.join(HEADS)}), not {given}.")


def shown_head(family: Family, keys: Iterable[str]) -> Head:
    """The head that a checkpoint has by the keys of its weights, where its config names no class."""
    keys = list(keys)
    found: list[Head] = [
        head
        for head, starts in family.heads.items()
        if head != "none" and all(any(key.startswith(start) for key in keys) for start in starts)
    ]
    most = max((len(family.heads[head]) for head in found), default=0)
    found = [head for head in found if len(family.heads[head]) == most]
    if len(found) > 1:
        kinds = [f"{family.name}{kind}" for kind, head in HEADS.items() if head in found]
        raise UserError(f'The weights may be of {" or ".join(kinds)}: name one as "architectures" in config.json.')
    return found[0] if found else "none"
