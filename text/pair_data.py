"""Pairs of texts that mean the same, or with a score: what sentence vectors are trained on."""

from collections.abc import Sequence
from dataclasses import field
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Shaped
from torch import Tensor

from core import Batch, UserError
from core.config import configclass
from core.data.dataset import Folds, Name, SplitFractions, required
from core.data.labelled import Entry, split_entries
from core.data.manifest import Row, manifest_rows, rows_of_splits
from core.data.splits import DataSplits, connected

from .corpora import Corpus, Text, warn_of_copies
from .datasets import LabelledTexts, Samples, Texts, collate, collate_padded, shortened
from .tokenizer import Tokenizer, TokenizerConfig

SCORE = "score"


class TextPairs(Texts):
    """Two texts in each sample, each framed by itself.

    token_counts: of both together.
    """

    def __init__(self, texts: Sequence[Text], first: Sequence[Sequence[int]], second: Sequence[Sequence[int]]):
        super().__init__(texts, first)
        self.second = [torch.tensor(numbers) for numbers in second]
        self.token_counts = [len(a) + len(b) for a, b in zip(first, second, strict=True)]

    def __getitem__(self, index: int) -> tuple[Shaped[Tensor, "..."], ...]:
        first, target = super().__getitem__(index)
        return first, self.second[index], target


def collate_pairs(samples: Samples, pad: int | None = None) -> Batch:
    """All first texts and then all second ones, in one row, or padded with `pad`; a target for each pair."""
    first, second, targets = zip(*samples, strict=True)
    texts = [(ids, targets[0]) for ids in (*first, *second)]
    inputs = collate(texts).inputs if pad is None else collate_padded(texts, pad).inputs
    return Batch(inputs, torch.stack(targets))


@configclass
class Pairs(Folds, LabelledTexts):
    """Pairs of texts, listed in a CSV or JSON Lines file."""

    name: Name[Literal["pairs"]] = "pairs"
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    path: Path | None = None
    """The manifest; with a column `score` (from -1 to 1) the cosine of two vectors is trained to be the score."""
    encoding: str = "utf-8"
    """Of the manifest, as Python names it: utf-8, latin-1, utf-16, cp1252."""
    columns: tuple[str, str] = ("sentence1", "sentence2")
    """The columns of the two texts."""

    def corpus(self) -> Corpus:
        return read_pairs(required(self.path, self.name), self.columns, self, self.encoding)

    def encoded(self, texts: Sequence[Text], tokenizer: Tokenizer, max_length: int, fixed: bool) -> TextPairs:
        room, names = tokenizer.room(max_length), [text.where for text in texts]
        sides = []
        for side in (0, 1):
            ids = tokenizer.encode([text.texts[side] for text in texts], names)
            cut = shortened(texts, ids, room, self.when_overlong, max_length - room, tokenizer.cuts_left)
            sides.append([tokenizer.frame(numbers) for numbers in cut])
        return TextPairs(texts, *sides)


def read_pairs(path: Path, columns: Sequence[str], fractions: SplitFractions, encoding: str) -> Corpus:
    """The target of a pair is its score; without scores a number that is the same for pairs that share a text, so that
    none of them counts as a wrong answer for another. Where the file names no splits, such pairs are in one split."""
    names = [name.strip().casefold() for name in columns]
    rows = manifest_rows(path, names, encoding, (SCORE, "split"), prose=names)
    without = [where for where, row in rows.items() if SCORE not in row]
    if without and len(without) < len(rows):
        raise UserError(f"{without[0]} has no 'score', but other rows have one: score all pairs or none.")
    places = rows_of_splits(path, rows)
    own = any(places[split] for split in ("validation", "test"))
    numbers = dict(zip(rows, connected([[row[name].strip() for name in names] for row in rows.values()]), strict=True))
    entries = {
        split: [
            Entry(
                where,
                Text(
                    rows[where][names[0]],
                    numbers[where] if without else score(where, rows[where]),
                    where,
                    second=rows[where][names[1]],
                ),
                group="" if own else str(numbers[where]),
            )
            for where in found
        ]
        for split, found in places.items()
    }
    data = split_entries(path, entries, fractions)
    corpus: DataSplits[list[Text]] = data.map(lambda part: [entry.sample for entry in part])
    warn_of_copies(corpus)
    return corpus


def score(where: str, row: Row) -> float:
    try:
        value = float(row[SCORE])
    except ValueError:
        raise UserError(f"{where}: the score {row[SCORE]!r} is not a number.") from None
    if not -1 <= value <= 1:
        raise UserError(f"{where}: the score is {value:g}, but that of a cosine is from -1 to 1: scale the scores.")
    return value
