"""Classify texts, fill in their hidden words or embed them: `python -m text.predict RUN TEXT...`."""

import json
import math
import os
import sys
import warnings
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro

from core import UserError
from core.config import Count, configclass
from core.experiments import predict_command
from core.experiments.cli import say
from core.experiments.figures import save_figure
from core.experiments.outputs import make_output_folder, shown_classes
from core.files import read_text

from .datasets import collate
from .model import TextConfig, TextEncoder
from .plots import draw_words, word_attention
from .pretrained import load_pretrained
from .tokenizer import Tokenizer, check_texts

BATCH = 32


@configclass
class Arguments:
    """Top classes of each text with their probabilities, and a picture of the words the model looked at. Of a model of
    hidden words: the best guesses for each [MASK]."""

    run: Annotated[str, tyro.conf.Positional]
    """A run's directory, one written by save_pretrained (ours or transformers'), or hf-hub:NAME."""
    texts: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """Texts, or .txt files of one each; standard input, one a line, if there are none."""
    top: Count | None = None
    """How many classes or words to show; up to 3 if not given."""
    embed: bool = False
    """Print a vector for each text instead: JSON lines of text and vector (of length 1, unless a model of
    sentence-transformers says otherwise)."""
    overlong: Literal["error", "truncate"] = "error"
    """What becomes of a text of more tokens than the model takes."""
    out: Path | None = None
    """Where the pictures go; RUN/predictions by default (./predictions for a model from the hub)."""


def predict(arguments: Arguments) -> None:
    texts = [_text(text) for text in arguments.texts] or _from_stdin()
    if empty := [number for number, text in enumerate(texts, 1) if not text.strip()]:
        raise UserError(f"Text {empty[0]} is empty.")
    check_texts(texts)
    model, tokenizer = load_pretrained(arguments.run)
    read = texts
    if arguments.embed:
        read = [model.config.sentence_prompt + text for text in texts]
    elif model.config.head == "tokens":
        if tokenizer.mask is None:
            raise UserError(f"{arguments.run}: its tokenizer has no mask token, so it can only --embed.")
        read = [text.replace("[MASK]", tokenizer.backend.id_to_token(tokenizer.mask)) for text in texts]
    ids = _encode(read, model, tokenizer, arguments.overlong)  # all are read before any is shown
    if arguments.embed:
        embed(texts, ids, model, tokenizer)
    elif model.config.head == "tokens":
        fill_in(texts, ids, model, tokenizer, arguments.top)
    elif model.config.head == "classes":
        run = Path(arguments.run)
        out = arguments.out or (run / "predictions" if run.is_dir() else Path("predictions"))
        classify(texts, ids, model, tokenizer, arguments.top, out)
    else:
        raise UserError(f"{arguments.run} has no head: it can only --embed.")


@torch.no_grad()
def classify(
    texts: list[str], ids: list[torch.Tensor], model: TextEncoder, tokenizer: Tokenizer, top: int | None, out: Path
) -> None:
    config = model.config
    labels = config.labels or tuple(map(str, range(config.classes)))
    shown = shown_classes(top, len(labels))
    predictions = [_finite(model(numbers[None])[0], number) for number, numbers in enumerate(ids, 1)]
    make_output_folder(out)
    taken = max((int(name) for name in map(_number, out.glob("text-*.png")) if name.isdecimal()), default=0)
    for number, (text, logits) in enumerate(zip(texts, predictions, strict=True), taken + 1):
        if config.predicts_number:
            found = f"{logits.item() * config.target_std + config.target_mean:.{digits_of(config)}g}"
        else:
            chances, classes = model.probabilities(logits).topk(shown)
            found = ", ".join(f"{labels[c]} {p:.1%}" for p, c in zip(chances, classes, strict=True))
        picture = out / f"text-{number}.png"
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph .* missing from font")  # boxes are drawn instead
            save_figure(draw_words(word_attention(model, tokenizer, text), found), picture)
        say(f"{_short(text)}: {found} (attention: {picture})")


def _number(picture: Path) -> str:
    return picture.stem.removeprefix("text-")


def digits_of(config: TextConfig) -> int:
    """How many of a predicted number say something: those of a thousandth of what the targets vary by."""
    size = abs(config.target_mean) / config.target_std
    return 4 + math.floor(math.log10(min(max(size, 1.0), 1e13)))


@torch.no_grad()
def fill_in(
    texts: list[str], ids: list[torch.Tensor], model: TextEncoder, tokenizer: Tokenizer, top: int | None
) -> None:
    hidden = [numbers == tokenizer.mask for numbers in ids]
    if whole := [number for number, where in enumerate(hidden, 1) if not where.any()]:
        raise UserError(f"Text {whole[0]} has no [MASK] to fill in; this model tells hidden words (or --embed).")
    shown = shown_classes(top, model.config.vocab_size, "tokens")
    for number, (text, numbers, where) in enumerate(zip(texts, ids, hidden, strict=True), 1):
        guesses = []
        for logits in _finite(model(numbers[None], where=where[None]), number):
            chances, words = logits.softmax(dim=-1).topk(shown)
            guesses.append(", ".join(f"{tokenizer.token(int(w))} {p:.1%}" for p, w in zip(chances, words, strict=True)))
        print(f"{_short(text)}: {'; '.join(guesses)}")


@torch.no_grad()
def embed(texts: list[str], ids: list[torch.Tensor], model: TextEncoder, tokenizer: Tokenizer) -> None:
    gather = partial(collate, pad=tokenizer.pad)
    for start in range(0, len(texts), BATCH):
        batch = gather([(numbers, torch.tensor(0)) for numbers in ids[start : start + BATCH]])
        for number, vector in enumerate(model.sentence_vectors(*batch.inputs), start):
            rounded = [round(value, 6) for value in _finite(vector, number + 1).tolist()]
            print(json.dumps({"text": texts[number], "vector": rounded}, ensure_ascii=False))


def _finite(output: torch.Tensor, number: int) -> torch.Tensor:
    if not output.isfinite().all():
        raise UserError(f"Text {number}: the model's output is not finite: its weights may be damaged.")
    return output


def _encode(texts: list[str], model: TextEncoder, tokenizer: Tokenizer, overlong: str) -> list[torch.Tensor]:
    most = model.config.max_length
    room = tokenizer.room(most)
    found = tokenizer.encode(texts)
    for number, ids in enumerate(found, 1):
        if not ids:
            raise UserError(f"Text {number}: the tokenizer finds no words in it.")
        if len(ids) > room and overlong == "error":
            raise UserError(
                f"Text {number} has {len(ids) + most - room} tokens, but the model takes {most}: shorten it, or choose "
                "--overlong truncate."
            )
    return [torch.tensor(tokenizer.frame(ids[-room:] if tokenizer.cuts_left else ids[:room])) for ids in found]


def _text(argument: str) -> str:
    """An argument itself, or what is in the file that it names."""
    if not argument.endswith(".txt"):
        return argument
    if os.path.exists(argument):
        return read_text(Path(argument))
    if len(argument.split()) > 1:  # a text about a file
        return argument
    raise UserError(f"There is no file {_short(argument)}.")


def _from_stdin() -> list[str]:
    """Each line. Where standard input is closed, Python has none."""
    try:
        text = "" if sys.stdin is None else sys.stdin.buffer.read().decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise UserError(f"Standard input is not utf-8 text (byte {error.start}).") from None
    if not text:
        raise UserError("Name at least one text after the run's directory, or give texts on standard input.")
    return text.removesuffix("\n").split("\n")


def _short(text: str, most: int = 60) -> str:
    line = " ".join(text.split())
    return line if len(line) <= most else f"{line[: most - 3]}..."


if __name__ == "__main__":
    predict_command("python -m text.predict", Arguments, predict)
