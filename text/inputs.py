"""The texts that commands are given: as arguments, in files, folders and manifests, or on standard input."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from core import UserError
from core.data.folders import walk_files
from core.data.manifest import manifest_rows
from core.experiments.inputs import Input, is_manifest, read_stdin
from core.files import read_text

from .tokenizer import check_texts


class Part(NamedTuple):
    """A text, or its file."""

    content: str | Path
    where: str = ""
    """Names it in messages, where its number does not."""


def text_parts(given: Sequence[str], columns: Sequence[str]) -> list[Part]:
    """What is given, or the lines of standard input if nothing is. columns: of the texts in manifests."""
    return [part for argument in given for part in _parts(argument, columns)] if given else _lines()


def text_inputs(parts: Sequence[Part], size: int, both_shown: bool) -> list[Input]:
    """size: 2 for texts that are taken two by two, of which results show the first or both."""
    what, found = "Pair" if size == 2 else "Text", []
    for number, start in enumerate(range(0, len(parts), size), 1):
        each = parts[start : start + size]
        contents = tuple(part.content for part in each)
        names = {
            f"{'path' if isinstance(content, Path) else 'text'}{end}": str(content)
            for content, end in zip(contents, ("", "_2"), strict=False)
        }
        file = contents[0] if isinstance(contents[0], Path) else Path(f"text-{number}")
        shown = " | ".join(in_short(str(content)) for content in (contents if both_shown else contents[:1]))
        found.append(Input(names, contents, each[0].where or f"{what} {number}", shown, file))
    return found


def contents_of(entry: Input) -> tuple[str, ...]:
    """The text of an input, or both of a pair."""
    texts = tuple(read_text(part) if isinstance(part, Path) else part for part in entry.source)
    if not all(text.strip() for text in texts):
        raise UserError(f"{entry.where} is empty.")
    check_texts(texts, [entry.where] * len(texts))
    return texts


def given_text(argument: str) -> str:
    """The argument itself, or the text of the file that it names."""
    part = _text_or_file(argument)
    return read_text(part) if isinstance(part, Path) else part


def in_short(text: str, most: int = 60) -> str:
    line = " ".join(text.split())
    return line if len(line) <= most else f"{line[: most - 3]}..."


def _parts(argument: str, columns: Sequence[str]) -> Iterator[Part]:
    """The argument itself, or the texts of the file or of the folder that it names."""
    path = Path(argument)
    if argument.endswith("/") and os.path.isdir(path):
        files = sorted(walk_files(path, (".txt",)))
        if not files:
            raise UserError(f"{argument} holds no text files (.txt).")
        yield from (Part(file, str(file)) for file in files)
    elif is_manifest(path) and os.path.exists(path):
        names = [name.strip().casefold() for name in columns]
        for where, row in manifest_rows(path, names, optional=(), prose=names).items():
            yield from (Part(row[name], where) for name in names)
    else:
        part = _text_or_file(argument)
        yield Part(part, argument if isinstance(part, Path) else "")


def _text_or_file(argument: str) -> str | Path:
    """A name that ends in .txt is that of a file; but a text may end in such a name."""
    is_file = argument.endswith(".txt") and (os.path.lexists(argument) or len(argument.split()) == 1)
    return Path(argument) if is_file else argument


def _lines() -> list[Part]:
    """The lines of standard input."""
    content = read_stdin("text", "texts")
    try:
        text = content.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise UserError(f"Standard input is not utf-8 text (byte {error.start}).") from None
    return [Part(line) for line in text.removesuffix("\n").split("\n")]
