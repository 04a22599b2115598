"""A page on which one points at words to see what they attend to: `python -m text.explore MODEL "a sentence"...`."""

from pathlib import Path
from typing import Annotated

import tyro

from core import UserError
from core.config import configclass
from core.experiments import predict_command
from core.experiments.exploring import ExploreArguments, compared, make_page

from .inputs import given_text, in_short
from .looks import look_at
from .pretrained import load_pretrained
from .tokenizer import check_texts

PAGE = Path("text")  # what a page is named after


@configclass
class Arguments(ExploreArguments):
    """Write a page on which one points at words, and sees what they attend to."""

    texts: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Texts, or .txt files with one text each; for a model of pairs two by two."""


def explore(arguments: Arguments) -> None:
    texts = [given_text(text) for text in arguments.texts]
    if not texts:
        raise UserError("Give at least one text after the model.")
    check_texts(texts)
    models = compared(arguments, load_pretrained, lambda loaded: loaded[0])
    count = 2 if models[0][1][0].config.pairs else 1
    if len(texts) % count:
        raise UserError(f"{arguments.model} takes pairs of texts, two by two, but there are {len(texts)} texts.")
    samples = [tuple(texts[at : at + count]) for at in range(0, len(texts), count)]
    looks = [[look_at(name, *loaded, sample, arguments.target) for name, loaded in models] for sample in samples]
    names = [" | ".join(map(in_short, sample)) for sample in samples]
    make_page(arguments, names, looks, "texts", PAGE)


if __name__ == "__main__":
    predict_command("python -m text.explore", Arguments, explore)
