"""Classify texts, tag their words, predict masked tokens, or embed texts: `python -m text.predict RUN TEXT...`."""

import json
import math
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro

from core import UserError
from core.config import Count, configclass
from core.experiments import predict_command
from core.experiments.cli import say
from core.experiments.figures import save_figure
from core.experiments.outputs import check_finite, make_output_folder, most_probable, shown_classes
from core.files import read_text

from .answers import answer
from .model import TextConfig, TextEncoder
from .pairs import PairFramer, framed_inputs
from .plots import draw_words, word_attention
from .pretrained import load_pretrained
from .tagging import tags_of_text
from .tokenizer import Tokenizer, check_texts

BATCH = 32


@configclass
class Arguments:
    """Print the most probable classes of each text, and plot the attention of the model over its words. A model for
    tags prints the entities of each text, one for masked tokens predicts each [MASK], one for answers takes questions
    and contexts in turn and prints each answer."""

    run: Annotated[str, tyro.conf.Positional]
    """A run's directory, one written by save_pretrained (ours or transformers'), or hf-hub:NAME."""
    texts: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """Texts, or .txt files with one text each; without any, standard input is read, one text a line."""
    top: Count | None = None
    """How many classes or tokens to show; at most 3 by default."""
    pairs: bool = False
    """Take the texts two by two, as pairs; a model that was trained on pairs here does so by itself."""
    embed: bool = False
    """Print a sentence vector for each text instead, as JSON lines of text and vector. Vectors have length 1, unless
    the config of a sentence-transformers model says otherwise."""
    overlong: Literal["error", "truncate"] = "error"
    """What happens to a text with more tokens than the model takes."""
    out: Path | None = None
    """Directory of the plots; RUN/predictions by default (./predictions for a model on the hub)."""


def predict(arguments: Arguments) -> None:
    texts = [given_text(text) for text in arguments.texts] or _from_stdin()
    if empty := [number for number, text in enumerate(texts, 1) if not text.strip()]:
        raise UserError(f"Text {empty[0]} is empty.")
    check_texts(texts)
    model, tokenizer = load_pretrained(arguments.run)
    config = model.config
    if (arguments.pairs or config.pairs) and config.head == "classes" and not arguments.embed:
        if len(texts) % 2:
            raise UserError(f"{arguments.run} takes pairs of texts, two by two, but there are {len(texts)} texts.")
        classify([*zip(texts[::2], texts[1::2], strict=True)], model, tokenizer, arguments)
        return
    if arguments.pairs:
        raise UserError("--pairs has no effect where no classes are predicted for pairs: leave it out.")
    inputs = texts
    if arguments.embed:
        inputs = [model.config.sentence_prompt + text for text in texts]
    elif model.config.head == "tokens":
        if tokenizer.mask is None:
            raise UserError(f"{arguments.run}: its tokenizer has no mask token, so it can only --embed.")
        mask = tokenizer.backend.id_to_token(tokenizer.mask) or "[MASK]"
        inputs = [text.replace("[MASK]", mask) for text in texts]
    with_ids = arguments.embed or config.head == "tokens"
    ids = _encode(inputs, model, tokenizer, arguments.overlong) if with_ids else []  # before anything is printed
    if arguments.embed:
        embed(texts, ids, model, arguments.run)
    elif model.config.head == "tokens":
        fill_in(texts, ids, model, tokenizer, arguments)
    elif model.config.head == "tags":
        say_tags(texts, model, tokenizer, arguments)
    elif model.config.head == "classes":
        classify([(text,) for text in texts], model, tokenizer, arguments)
    elif config.head == "spans":
        say_answers(texts, model, tokenizer, arguments.run)
    else:
        raise UserError(f"{arguments.run} has no head: it can only --embed.")


@torch.no_grad()
def classify(texts: Sequence[tuple[str, ...]], model: TextEncoder, tokenizer: Tokenizer, arguments: Arguments) -> None:
    """texts: each alone, or the two of a pair."""
    config, run = model.config, Path(arguments.run)
    shown = shown_classes(arguments.top, config.classes)
    parts = encoded_parts(texts, model, tokenizer, arguments.overlong)
    predictions = [model(*framed_inputs(config, tokenizer, each)[0])[0] for each in parts]
    for logits in predictions:
        check_finite(logits, run)
    out = arguments.out or (run / "predictions" if run.is_dir() else Path("predictions"))
    make_output_folder(out)
    numbers = (plot.stem.removeprefix("text-") for plot in out.glob("text-*.png"))
    taken = max((int(number) for number in numbers if number.isdecimal()), default=0)
    for number, (text, logits) in enumerate(zip(texts, predictions, strict=True), taken + 1):
        if config.predicts_number:
            predicted = f"{logits.item() * config.target_std + config.target_mean:.{digits_of(config)}g}"
        else:
            predicted = ", ".join(most_probable(model.probabilities(logits), config.labels, shown))
        plot = out / f"text-{number}.png"
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph .* missing from font")  # boxes are drawn instead
            save_figure(draw_words(word_attention(model, tokenizer, *text), predicted), plot)
        say(f"{' | '.join(map(in_short, text))}: {predicted} (attention: {plot})")


def digits_of(config: TextConfig) -> int:
    """Significant digits of a predicted number: down to a thousandth of the targets' standard deviation."""
    size = abs(config.target_mean) / config.target_std
    return 4 + math.floor(math.log10(min(max(size, 1.0), 1e13)))


@torch.no_grad()
def fill_in(
    texts: list[str], ids: list[torch.Tensor], model: TextEncoder, tokenizer: Tokenizer, arguments: Arguments
) -> None:
    masked = [each == tokenizer.mask for each in ids]
    if whole := [number for number, where in enumerate(masked, 1) if not where.any()]:
        raise UserError(f"Text {whole[0]} has no [MASK], but this model predicts masked tokens (or use --embed).")
    shown = shown_classes(arguments.top, model.config.vocab_size, "tokens")
    for text, each, where in zip(texts, ids, masked, strict=True):
        logits = model(each[None], where=where[None])
        check_finite(logits, arguments.run)
        predicted = []
        for values, tokens in zip(*logits.softmax(dim=-1).topk(shown), strict=True):
            best = zip(values, tokens, strict=True)
            predicted.append(", ".join(f"{tokenizer.token(int(token))} {value:.1%}" for value, token in best))
        print(f"{in_short(text)}: {'; '.join(predicted)}")


def say_tags(texts: list[str], model: TextEncoder, tokenizer: Tokenizer, arguments: Arguments) -> None:
    found = [tags_of_text(model, tokenizer, text, cut=arguments.overlong == "truncate") for text in texts]
    if None in found:
        raise UserError(
            f"Text {found.index(None) + 1} has more tokens than the {model.config.max_length} that the model takes: "
            "shorten it, or choose --overlong truncate."
        )
    for text, each in zip(texts, found, strict=True):
        said = ", ".join(f"{part.text} {part.label} {part.probability:.0%}" for part in each or ())
        print(f"{in_short(text)}: {said or 'nothing found'}")


def say_answers(texts: list[str], model: TextEncoder, tokenizer: Tokenizer, run: str) -> None:
    if len(texts) % 2:
        raise UserError(f"{run} answers questions: give each question and its context, not {len(texts)} texts.")
    found = [answer(model, tokenizer, *pair) for pair in zip(texts[::2], texts[1::2], strict=True)]
    for question, each in zip(texts[::2], found, strict=True):
        print(f"{in_short(question)}: {each.text} {each.probability:.0%}")


@torch.no_grad()
def embed(texts: list[str], ids: list[torch.Tensor], model: TextEncoder, run: str) -> None:
    for start in range(0, len(texts), BATCH):
        vectors = model.sentence_vectors(ids[start : start + BATCH])
        check_finite(vectors, run)
        for number, vector in enumerate(vectors, start):
            rounded = [round(value, 6) for value in vector.tolist()]
            print(json.dumps({"text": texts[number], "vector": rounded}, ensure_ascii=False))


def _encode(texts: list[str], model: TextEncoder, tokenizer: Tokenizer, overlong: str) -> list[torch.Tensor]:
    parts = encoded_parts([(text,) for text in texts], model, tokenizer, overlong)
    return [framed_inputs(model.config, tokenizer, each)[0][0][0] for each in parts]


def encoded_parts(
    texts: Sequence[tuple[str, ...]],
    model: TextEncoder,
    tokenizer: Tokenizer,
    overlong: str,
    remedy: str = "shorten it, or choose --overlong truncate",
) -> list[list[list[int]]]:
    """The token ids of each text, or of both texts of each pair, without special tokens."""
    most, of_pairs = model.config.max_length, len(texts[0]) == 2
    what = "Pair" if of_pairs else "Text"
    special = PairFramer(tokenizer).special if of_pairs else most - tokenizer.room(most)
    encoded = iter(tokenizer.encode([part for text in texts for part in text]))
    parts = [[next(encoded) for _ in text] for text in texts]
    for number, each in enumerate(parts, 1):
        if not all(each):
            raise UserError(f"{what} {number}: the tokenizer returns no tokens for it.")
        if (count := sum(map(len, each)) + special) > most and overlong == "error":
            raise UserError(f"{what} {number} has {count} tokens, but the model takes {most}: {remedy}.")
    return parts


def given_text(argument: str) -> str:
    """The argument itself, or the text of the file that it names."""
    if not argument.endswith(".txt"):
        return argument
    if os.path.exists(argument):
        return read_text(Path(argument))
    if len(argument.split()) > 1:  # a text that ends in the name of a file
        return argument
    raise UserError(f"There is no file {in_short(argument)}.")


def _from_stdin() -> list[str]:
    """The lines of standard input; Python has none if it is closed."""
    try:
        text = "" if sys.stdin is None else sys.stdin.buffer.read().decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise UserError(f"Standard input is not utf-8 text (byte {error.start}).") from None
    if not text:
        raise UserError("Name at least one text after the run's directory, or give texts on standard input.")
    return text.removesuffix("\n").split("\n")


def in_short(text: str, most: int = 60) -> str:
    line = " ".join(text.split())
    return line if len(line) <= most else f"{line[: most - 3]}..."


if __name__ == "__main__":
    predict_command("python -m text.predict", Arguments, predict)
