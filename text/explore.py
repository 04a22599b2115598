"""A page on which one points at words to see what they attend to: `python -m text.explore MODEL "a sentence"...`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from core import UserError
from core.config import configclass
from core.experiments import predict_command
from core.experiments.exploring import ExploreArguments, compared, make_page, predicted
from core.explore import Look, Piece, Words, look

from .inputs import given_text, in_short
from .model import TextEncoder
from .pairs import encoded_parts, framed_inputs
from .pretrained import load_pretrained
from .tokenizer import Tokenizer, check_texts

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


def look_at(
    name: str, model: TextEncoder, tokenizer: Tokenizer, texts: Sequence[str], target: str | None = None
) -> Look:
    """What a model attends to in a text, or in the two of a pair; target: the class that gradients are of."""
    config = model.config
    what = "The pair" if len(texts) == 2 else "The text"
    ids = encoded_parts(config, tokenizer, texts, what, "error", "shorten it")
    inputs, places = framed_inputs(config, tokenizer, ids)
    of_classes = config.head == "classes" and not config.predicts_number
    return look(
        name,
        lambda: model(*inputs) if of_classes else model.encode(*inputs) and None,
        [words(model, tokenizer, texts, inputs[0][0].tolist(), [place.first for place in places])],
        depth=config.encoder.depth,
        pool=config.pool,
        predictions=predicted(config, model.probabilities, target) if of_classes else None,
    )


def words(
    model: TextEncoder, tokenizer: Tokenizer, texts: Sequence[str], ids: list[int], starts: Sequence[int]
) -> Words:
    """The pieces of a text, or of the two of a pair, with the special tokens around them.

    ids: of all tokens. starts: where those of each text begin.
    """
    if model.config.filler is not None:  # every text is filled up with it
        ids = [*ids, *[model.config.filler] * (model.config.max_length - len(ids))]
    found = [Piece(tokenizer.token(number), 0, 0) for number in ids]
    before = 0  # letters of the texts before
    for text, start in zip(texts, starts, strict=True):
        last = 0
        for place, (begin, end) in enumerate(tokenizer.offsets(text), start):
            letters = text[begin:end]
            joined = place > start and not (text[last:begin] or letters[:1].isspace())
            found[place] = Piece(letters.strip() or "␣", before + begin, before + max(end, begin + 1), joined)
            last = end
        before += len(text) + 1
    return Words(found)


if __name__ == "__main__":
    predict_command("python -m text.explore", Arguments, explore)
