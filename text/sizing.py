"""How a model and its training follow the user's own texts: see `core.experiments.sizing`."""

import re
from collections.abc import Collection
from statistics import mean
from typing import Any

from core.experiments.sizes import MOST_EPOCHS, Size, regularisation
from core.experiments.sizing import Settings, Sizing

from .pretrained import load_pretrained

WORD = re.compile(r"\w+|[^\w\s]")
EPOCHS = 3  # after which a model learns labelled texts by heart; masks of tokens are new in each epoch
PIECES = 1.3  # tokens of a word
SPECIAL = 2  # tokens around a text
TINY_DEPTH = 2  # layers for labelled texts, whose token embeddings are most of a tiny model
ROOM, LONGEST = 2.0, 1024  # a model takes texts so much longer than the longest, but no more tokens


def sizing(experiment: Any, given: Collection[str]) -> Sizing:
    """given: the names of the fields that options set."""
    corpus = experiment.data.corpus()
    words = [sum(len(WORD.findall(part)) for part in text.texts) for text in corpus.train]
    longest = max(len(WORD.findall(part)) for part in (" ".join(text.texts) for text in corpus.train))
    start = None if experiment.init is None else load_pretrained(experiment.init)[0].config
    masks = experiment.data.masks_tokens
    strength = 0 if masks else regularisation(len(words))

    def settings(size: Size | None) -> Settings:
        if size is None:
            return {f"model.{name}": 0.1 for name in ("dropout", "head_dropout", "encoder.dropout")}
        length = min(max(16 * -(-round(ROOM * longest + SPECIAL) // 16), 32), LONGEST)
        return {
            "model.dropout": round(0.1 + 0.4 * strength, 2),
            "model.head_dropout": round(0.1 + 0.4 * strength, 2),
            "model.encoder.dropout": round(0.1 + 0.2 * strength, 2),
            **({"model.encoder.depth": TINY_DEPTH} if size.name == "tiny" and not masks else {}),
            "model.max_length": length,
            "model.positions": "none",
            "model.encoder.rotary": "1d",
            "model.encoder.norm_order": "pre",
        }

    def tokens(config: Any) -> int:
        return round(mean(min(PIECES * count + SPECIAL, config.max_length) for count in words))

    what = f"texts, of {mean(words):.0f} words on average"
    return Sizing(len(words), what, settings, tokens, MOST_EPOCHS if masks else EPOCHS, start)
