"""Texts whose words have tags: read from files, and aligned with the pieces that a tokenizer makes of words."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Int
from torch import Tensor

from core import IGNORE, UserError
from core.config import configclass
from core.data import labelled
from core.data.dataset import Folds, Name, SplitFractions, required
from core.data.labelled import Entry
from core.data.manifest import JSON_LINES, SPLITS, TABLES, as_text, json_records, normal_name
from core.files import read_text

from .corpora import Corpus, Text, warn_of_copies
from .datasets import LabelledTexts, Texts, shortened
from .tokenizer import Tokenizer

DOCUMENT = "-DOCSTART-"  # a line between the documents of CoNLL-2003


class TaggedTexts(Texts):
    """Texts with a target for the first piece of each word; all other tokens are ignored.

    kept: the numbers of the words that have a target, for each text.
    """

    def __init__(
        self,
        texts: Sequence[Text],
        ids: Sequence[Sequence[int]],
        targets: Sequence[Sequence[int]],
        kept: Sequence[Sequence[int]],
    ):
        super().__init__(texts, ids)
        self.targets, self.kept = [torch.tensor(numbers) for numbers in targets], kept

    def __getitem__(self, index: int) -> tuple[Int[Tensor, "n"], Int[Tensor, "n"]]:
        return self.ids[index].long(), self.targets[index]


@configclass
class Tagged(Folds, LabelledTexts):
    """Texts with a tag for each word, in a file like CoNLL's or in JSON Lines."""

    name: Name[Literal["tagged"]] = "tagged"
    path: Path | None = None
    """The file, or a folder with a file for each split (train.txt, dev.txt, test.txt). A file has a token and its tag,
    the first and the last field of a line, and a blank line between sentences; or .jsonl with `tokens` and `tags`."""
    encoding: str = "utf-8"
    """Of the files, as Python names it: utf-8, latin-1, utf-16, cp1252."""

    def corpus(self) -> Corpus:
        return read_tagged(required(self.path, self.name), self, self.encoding)

    def encoded(self, texts: Sequence[Text], tokenizer: Tokenizer, max_length: int, fixed: bool) -> TaggedTexts:
        room = tokenizer.room(max_length)
        whole, first = tokenizer.encode_words([text.words for text in texts], [text.where for text in texts])
        ids = shortened(texts, whole, room, self.when_overlong, max_length - room, tokenizer.cuts_left)
        order = sorted(range(len(ids)), key=lambda i: len(ids[i])) if fixed else range(len(ids))
        before, after = ([IGNORE] * len(tokens) for tokens in (tokenizer.before, tokenizer.after))
        targets, kept = [], []
        for index in order:
            skipped = len(whole[index]) - len(ids[index]) if tokenizer.cuts_left else 0
            inner, words = [IGNORE] * len(ids[index]), []
            for word, (place, tag) in enumerate(zip(first[index], texts[index].tags, strict=True)):
                if place is not None and 0 <= place - skipped < len(inner):
                    inner[place - skipped] = tag
                    words.append(word)
            targets.append([*before, *inner, *after])
            kept.append(words)
        _warn_of_lost_words(texts, first)
        return TaggedTexts([texts[i] for i in order], [tokenizer.frame(ids[i]) for i in order], targets, kept)


def read_tagged(path: Path, fractions: SplitFractions, encoding: str) -> Corpus:
    """A file, or a folder with a file for each split."""
    if path.is_dir():
        files = {SPLITS[file.stem.casefold()]: file for file in sorted(path.iterdir()) if _is_split(file)}
        if "train" not in files:
            raise UserError(f"{path} has no file train.txt or train.jsonl: name the files by their splits.")
        entries: dict[str, list[Entry]] = {
            split: [entry for _, entry in _read(file, encoding)] for split, file in files.items()
        }
    else:
        entries = {"train": [], "validation": [], "test": []}
        for split, entry in _read(path, encoding):
            entries[split].append(entry)
    if not entries["train"]:
        raise UserError(f"{path} has no sentences to train on.")
    data = labelled.split_entries(path, entries, fractions)
    corpus = data.map(lambda part: [Text(" ".join(e.sample), 0, e.where, e.sample, e.target) for e in part])
    warn_of_copies(corpus)
    return corpus


def _is_split(file: Path) -> bool:
    return file.stem.casefold() in SPLITS and file.is_file()


def _read(file: Path, encoding: str) -> Iterator[tuple[str, Entry]]:
    """The sentences of a file, each with its split."""
    suffix = file.suffix.lower()
    if suffix in TABLES:
        raise UserError(f"{file}: words with tags are lines of a text file, or {' or '.join(JSON_LINES)}, no table.")
    text = read_text(file, encoding)
    sentences = _json_sentences(file, text) if suffix in JSON_LINES else _line_sentences(file, text)
    found = False
    for where, words, tags, split in sentences:
        for what, values in (("token", words), ("tag", tags)):
            if empty := [number for number, value in enumerate(values, 1) if not value]:
                raise UserError(f"{where}: {what} {empty[0]} of {len(values)} is empty.")
        found = True
        yield split, Entry(where, tuple(words), tuple(tags))
    if not found:
        raise UserError(f"{file} holds no words with tags.")


def _line_sentences(file: Path, text: str) -> Iterator[tuple[str, list[str], list[str], str]]:
    words, tags, first = [], [], 1
    for number, line in enumerate([*text.split("\n"), ""], 1):
        fields = [field.strip() for field in line.split("\t")] if "\t" in line.rstrip() else line.split()
        if not any(fields) or fields[0] == DOCUMENT:
            if words:
                yield f"{file}, line {first}", words, tags, "train"
            words, tags, first = [], [], number + 1
        elif len(fields) < 2:
            raise UserError(
                f"{file}, line {number} has no tag beside {fields[0]!r}: write a token and its tag on each line, and a "
                "blank line between sentences."
            )
        else:
            words.append(fields[0])
            tags.append(normal_name(fields[-1]))


def _json_sentences(file: Path, text: str) -> Iterator[tuple[str, list[str], list[str], str]]:
    for where, record in json_records(file, text, ("tokens", "tags", "split")):
        words, tags = (_strings(where, record, name) for name in ("tokens", "tags"))
        if len(words) != len(tags):
            raise UserError(f"{where} has {len(words)} tokens, but {len(tags)} tags.")
        split = record.get("split", "train")
        if not isinstance(split, str) or split.strip().casefold() not in SPLITS:
            raise UserError(f"{where}: split is {split!r}, but must be 'train', 'val' or 'test'.")
        if words:
            yield where, words, [normal_name(tag) for tag in tags], SPLITS[split.strip().casefold()]


def _strings(where: str, record: Mapping[str, Any], name: str) -> list[str]:
    if name not in record:
        raise UserError(f"{where} has no {name!r}.")
    if not isinstance(record[name], list):
        raise UserError(f"{where}: {name!r} must be a list.")
    try:
        return [as_text(value).strip() for value in record[name]]
    except TypeError as error:
        raise UserError(f"{where}: {name!r} holds {error} where text belongs.") from None


def _warn_of_lost_words(texts: Sequence[Text], first: Sequence[Sequence[int | None]]) -> None:
    lost = [(text, words.index(None)) for text, words in zip(texts, first, strict=True) if None in words]
    if lost:
        text, word = lost[0]
        warnings.warn(
            f"{len(lost)} of {len(texts)} texts have words of which the tokenizer makes nothing, such as "
            f"{text.words[word]!r} ({text.where}); these words are left out.",
            stacklevel=2,
        )
