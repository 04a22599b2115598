"""Classify texts, tag their words, predict masked tokens, or embed texts: `python -m text.predict RUN TEXT...`."""

from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import tyro

from core import UserError
from core.config import configclass
from core.experiments import predict_command
from core.experiments.figures import save_figure
from core.experiments.inputs import Input
from core.experiments.prediction import PredictOptions, predict_inputs
from core.experiments.predictor import Predictor
from core.experiments.results import Row

from .inputs import contents_of, text_inputs, text_parts
from .model import TextEncoder
from .plots import draw_words, word_attention
from .predictions import Framed, Reading, answers, classes, masked_tokens, tags, vectors
from .pretrained import load_pretrained
from .tokenizer import Tokenizer


@configclass
class Arguments(PredictOptions):
    """Print the most probable classes of each text, or write them to a table (--out). A model for tags prints the
    entities of each text, one for masked tokens predicts each [MASK], one for answers takes questions and contexts in
    turn and prints each answer."""

    run: Annotated[str, tyro.conf.Positional]
    """A run's directory, one written by save_pretrained (ours or transformers'), or hf-hub:NAME."""
    inputs: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """Texts, .txt files with one text each, folders of them (a name that ends in /), and manifests; without any,
    standard input is read, one text a line."""
    columns: tuple[str, ...] = ()
    """Column of the texts in a manifest, or the two of pairs; `text` by default."""
    pairs: bool = False
    """Take the texts two by two, as pairs; a model that was trained on pairs here does so by itself."""
    embed: bool = False
    """Print a sentence vector for each text instead, as JSON lines of text and vector. Vectors have length 1, unless
    the config of a sentence-transformers model says otherwise."""
    overlong: Literal["error", "truncate"] = "error"
    """What happens to a text with more tokens than the model takes."""


def predict(arguments: Arguments) -> None:
    model, tokenizer = load_pretrained(arguments.run)
    config = model.config
    of_pairs = (arguments.pairs or config.pairs) and config.head == "classes" and not arguments.embed
    if arguments.pairs and not of_pairs:
        raise UserError("--pairs has no effect where no classes are predicted for pairs: leave it out.")
    predictor = predictor_of(model, tokenizer, arguments)
    size = 2 if of_pairs or (config.head == "spans" and not arguments.embed) else 1
    predict_inputs(predictor, inputs_of(arguments, size, of_pairs), arguments)


def predictor_of(model: TextEncoder, tokenizer: Tokenizer, arguments: Arguments) -> Predictor:
    config, reading = model.config, reading_of(model, tokenizer, arguments)
    return Predictor(
        run=arguments.run,
        model=model,
        read=partial(read, reading),
        compute=reading.compute,
        form=reading.form,
        plot=partial(plot, model, tokenizer, reading) if config.head == "classes" and not arguments.embed else None,
        in_memory=True,
        version=tokenizer.backend.to_str(),
    )


def reading_of(model: TextEncoder, tokenizer: Tokenizer, arguments: Arguments) -> Reading:
    """What the model's head predicts, or --embed asks for."""
    head, overlong = model.config.head, arguments.overlong
    if arguments.top is not None and (arguments.embed or head in ("tags", "spans", "none")):
        raise UserError("--top has no effect where no classes and no tokens are predicted: leave it out.")
    if arguments.embed or head == "none":
        return vectors(model, tokenizer, overlong)
    if head == "tokens":
        return masked_tokens(model, tokenizer, overlong, arguments.top, arguments.run)
    if head == "tags":
        return tags(model, tokenizer, overlong)
    if head == "spans":
        return answers(model, tokenizer)
    return classes(model, tokenizer, overlong, arguments.top)


def read(reading: Reading, entry: Input) -> Framed | tuple[str, ...]:
    return reading.read(entry.where, contents_of(entry))


def plot(
    model: TextEncoder, tokenizer: Tokenizer, reading: Reading, sample: Framed, entry: Input, row: Row, path: Path
) -> None:
    """The words of a text, each the stronger marked, the more the model attends to it."""
    save_figure(draw_words(word_attention(model, tokenizer, *contents_of(entry)), reading.form.say(row) or ""), path)


def inputs_of(arguments: Arguments, size: int, of_pairs: bool) -> list[Input]:
    """size: 2 for texts that are taken two by two; of_pairs: these are pairs, and not questions and contexts."""
    columns = arguments.columns or ("text",)
    if len(columns) not in (1, size):
        which = "the column of the texts, or the two of pairs" if size == 2 else "the column of the texts"
        raise UserError(f"--columns names {which}, not {len(columns)}.")
    parts = text_parts(arguments.inputs, columns)
    if len(parts) % size:
        run, count = arguments.run, len(parts)
        raise UserError(
            f"{run} takes pairs of texts, two by two, but there are {count} texts."
            if of_pairs
            else f"{run} answers questions: give each question and its context, not {count} texts."
        )
    return text_inputs(parts, size, of_pairs)


if __name__ == "__main__":
    predict_command("python -m text.predict", Arguments, predict)
