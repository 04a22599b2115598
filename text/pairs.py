"""Pairs of texts in one sequence, between the special tokens that the tokenizer puts around them."""

import warnings
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch

from core import UserError

from .corpora import Text
from .model import TextConfig
from .tokenizer import Tokenizer, known_text

Overlong = Literal["truncate", "error"]
"""What becomes of texts of more tokens than the model takes."""


class Pair(NamedTuple):
    """The token ids of two texts, framed."""

    ids: list[int]
    segments: list[int]
    """The segment of each token: 0 for the first text, 1 for the second, if the tokenizer says so."""
    starts: tuple[int, int]
    """The place of each text's first token."""
    kept: tuple[int, int]
    """How many tokens of each text were kept."""


class PairFramer:
    """Puts two texts into one sequence, as the tokenizer's post-processor does."""

    def __init__(self, tokenizer: Tokenizer):
        self.cuts_left = tokenizer.cuts_left
        text = known_text(tokenizer.backend)
        found = tokenizer.backend.encode(text, text)
        first, second = ([p for p, s in enumerate(found.sequence_ids) if s == number] for number in (0, 1))
        parts = slice(0, first[0]), slice(first[-1] + 1, second[0]), slice(second[-1] + 1, None)
        self.before, self.between, self.after = (found.ids[part] for part in parts)
        if not self.between:
            raise UserError("The tokenizer puts nothing between the texts of a pair: choose another.")
        self.segments = [found.type_ids[part] for part in parts]
        self.own_segments = found.type_ids[first[0]], found.type_ids[second[0]]
        self.special = len(self.before) + len(self.between) + len(self.after)

    def __call__(self, first: Sequence[int], second: Sequence[int], most: int) -> Pair:
        """Of at most `most` tokens: the longer text is cut first (longest_first of transformers)."""
        room = most - self.special
        if room < 2:
            raise UserError(f"A model of {most} tokens has no room for pairs: {self.special} are special tokens.")
        sizes = kept_of(len(first), len(second), room)
        cut = [ids[-size:] if self.cuts_left else ids[:size] for ids, size in zip((first, second), sizes, strict=True)]
        ids = [*self.before, *cut[0], *self.between, *cut[1], *self.after]
        of_first, of_second = ([segment] * size for segment, size in zip(self.own_segments, sizes, strict=True))
        segments = [*self.segments[0], *of_first, *self.segments[1], *of_second, *self.segments[2]]
        start = len(self.before)
        return Pair(ids, segments, (start, start + sizes[0] + len(self.between)), sizes)


def kept_of(first: int, second: int, room: int) -> tuple[int, int]:
    """How many tokens of two texts of these lengths are kept."""
    if first + second <= room:
        return first, second
    shorter = min(first, second, room // 2)
    return (shorter, room - shorter) if first <= second else (room - shorter, shorter)


def framed_pairs(texts: Sequence[Text], tokenizer: Tokenizer, max_length: int, overlong: Overlong) -> list[Pair]:
    """How many were cut is said in a warning, or the first is an error."""
    frame, names = PairFramer(tokenizer), [text.where for text in texts]
    both = [tokenizer.encode([text.texts[side] for text in texts], names) for side in (0, 1)]
    cut = 0
    for text, *parts in zip(texts, *both, strict=True):
        if not all(parts):
            raise UserError(f"{text.where}: the tokenizer finds no words in this text.")
        count = sum(map(len, parts)) + frame.special
        cut += count > max_length
        if count > max_length and overlong == "error":
            raise UserError(
                f"{text.where}: {count} tokens, but the model takes {max_length}: shorten the texts, raise "
                "--model.max-length, or choose --data.overlong truncate."
            )
    if cut:
        warnings.warn(f"{cut} of {len(texts)} pairs have more than {max_length} tokens and were cut.", stacklevel=2)
    return [frame(first, second, max_length) for first, second in zip(*both, strict=True)]


class Place(NamedTuple):
    """Where the tokens of a text are in a sequence."""

    first: int
    kept: int
    skipped: int
    """How many of its own tokens were cut off before those."""


def encoded_parts(
    config: TextConfig, tokenizer: Tokenizer, texts: Sequence[str], where: str, overlong: Overlong, remedy: str
) -> list[list[int]]:
    """The token ids of a text, or of both of a pair, without special tokens. Refused is one without any, or (overlong:
    error) with more than the model takes. where: names it in messages. remedy: for one that is too long."""
    parts = tokenizer.encode(texts, [where] * len(texts))
    if not all(parts):
        raise UserError(f"{where}: the tokenizer returns no tokens for it.")
    most = config.max_length
    special = PairFramer(tokenizer).special if len(texts) == 2 else most - tokenizer.room(most)
    if (count := sum(map(len, parts)) + special) > most and overlong == "error":
        raise UserError(f"{where} has {count} tokens, but the model takes {most}: {remedy}.")
    return parts


def framed_inputs(
    config: TextConfig, tokenizer: Tokenizer, parts: Sequence[Sequence[int]]
) -> tuple[tuple[Any, ...], list[Place]]:
    """A model's inputs (ids "1 n" and what follows) for a text or for the two of a pair, cut to what it takes."""
    if len(parts) == 1:
        room = tokenizer.room(config.max_length)
        kept = [min(len(parts[0]), room)]
        ids = tokenizer.frame(parts[0][-room:] if tokenizer.cuts_left else parts[0][:room])
        inputs, starts = (torch.tensor([ids]),), (len(tokenizer.before),)
    else:
        pair = PairFramer(tokenizer)(parts[0], parts[1], config.max_length)
        kept, starts = pair.kept, pair.starts
        segments = (None, torch.tensor([pair.segments])) if config.segments > 1 else ()
        inputs = torch.tensor([pair.ids]), *segments
    skipped = [len(part) - size if tokenizer.cuts_left else 0 for part, size in zip(parts, kept, strict=True)]
    return inputs, [Place(*place) for place in zip(starts, kept, skipped, strict=True)]
