"""Text data sets, and their texts as token ids: framed, cut or in pieces, with masked tokens, and in batches."""

import warnings
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Int, Shaped
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset

from core import IGNORE, Batch, UserError
from core.config import configclass
from core.data import DataSplits
from core.data.dataset import Folds, Name, required

from .corpora import Corpus, Target, Text, read_docstrings, read_huggingface, read_manifest
from .pairs import Overlong, framed_pairs
from .rows import pack_texts
from .tokenizer import Tokenizer, TokenizerConfig, train_tokenizer

MASK_RATIO = 0.15  # share of the tokens that are predicted


class Texts(Dataset):
    """Texts as framed token ids, each with its target; those of pairs with the segment of each token.

    token_counts: the number of tokens of each, those of its frame included.
    """

    def __init__(
        self, texts: Sequence[Text], ids: Sequence[Sequence[int]], segments: Sequence[Sequence[int]] | None = None
    ):
        self.texts, self.ids = texts, [torch.tensor(numbers, dtype=torch.int32) for numbers in ids]
        self.segments = [torch.tensor(numbers) for numbers in segments or ()]
        self.token_counts = [len(numbers) for numbers in ids]
        self.class_numbers = [text.target for text in texts]

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> tuple[Shaped[Tensor, "..."], ...]:
        number = self.texts[index].target
        target = torch.tensor(number, dtype=torch.float64 if isinstance(number, float) else torch.long)
        return (self.ids[index].long(), *((self.segments[index],) if self.segments else ()), target)


class MaskedTexts(Texts):
    """Texts with masked tokens: other tokens each time, or (fixed) always the same, for evaluation."""

    def __init__(self, texts: Sequence[Text], ids: Sequence[Sequence[int]], tokenizer: Tokenizer, fixed: bool):
        super().__init__(texts, ids)
        self.tokenizer, self.fixed = tokenizer, fixed

    def __getitem__(self, index: int) -> tuple[Int[Tensor, "n"], Int[Tensor, "n"]]:
        generator = torch.Generator().manual_seed(index) if self.fixed else None
        return mask_tokens(self.ids[index].long(), self.tokenizer, generator)


def mask_tokens(
    ids: Int[Tensor, "n"], tokenizer: Tokenizer, generator: torch.Generator | None = None
) -> tuple[Int[Tensor, "n"], Int[Tensor, "n"]]:
    """Inputs and targets: of the tokens that are predicted, 80 % become [MASK], 10 % any token, and 10 % stay.

    Devlin et al. 2019, section 3.1. At least one token of each text is predicted, but none of its frame.
    """
    inner = len(ids) - len(tokenizer.before) - len(tokenizer.after)
    count = max(1, round(MASK_RATIO * inner))
    masked = len(tokenizer.before) + torch.randperm(inner, generator=generator)[:count]
    draws = torch.rand(count, generator=generator)
    inputs, targets = ids.clone(), torch.full_like(ids, IGNORE)
    targets[masked] = ids[masked]
    inputs[masked[draws < 0.8]] = tokenizer.mask
    replaced = masked[draws >= 0.9]
    inputs[replaced] = torch.randint(tokenizer.size, replaced.shape, generator=generator)
    return inputs, targets


Samples = list[tuple[Shaped[Tensor, "..."], ...]]
"""The token ids of a text, for pairs the segments of the tokens, and the target."""


def collate(samples: Samples, segments: bool = True) -> Batch:
    """All texts in one row, without padding; their targets one behind the other, those of tokens in a row as well.

    segments: whether the model takes those of pairs.
    """
    ids, *between, targets = zip(*samples, strict=True)
    more = [torch.cat(each)[None] for each in between if segments]
    return Batch((*pack_texts(ids), *more), torch.cat(targets)[None] if targets[0].ndim else torch.stack(targets))


def collate_padded(samples: Samples, pad: int, segments: bool = True) -> Batch:
    """Padded to the longest; no mask where nothing is padded, which is faster."""
    ids, *between, targets = zip(*samples, strict=True)
    lengths = torch.tensor([len(numbers) for numbers in ids])
    mask = None if lengths.min() == lengths.max() else torch.arange(int(lengths.max())) < lengths[:, None]
    more = [pad_sequence([*each], batch_first=True) for each in between if segments]
    inputs = pad_sequence([*ids], batch_first=True, padding_value=pad), mask, *more
    if targets[0].ndim:
        return Batch(inputs, pad_sequence([*targets], batch_first=True, padding_value=IGNORE))
    return Batch(inputs, torch.stack(targets))


def in_pieces(
    texts: Sequence[Text], ids: Sequence[Sequence[int]], length: int
) -> tuple[list[Text], list[Sequence[int]]]:
    """Texts of at most `length` tokens, those that are longer cut evenly; what has no token is left out."""
    pieces = []
    for text, numbers in zip(texts, ids, strict=True):
        count = -(-len(numbers) // length)
        bounds = [len(numbers) * piece // count for piece in range(count + 1)] if count else []
        pieces += [(text, numbers[a:b]) for a, b in pairwise(bounds)]
    if not pieces:
        raise UserError("The tokenizer finds no words in these texts: choose another, or other texts.")
    return [text for text, _ in pieces], [numbers for _, numbers in pieces]


def shortened(
    texts: Sequence[Text],
    ids: Sequence[Sequence[int]],
    length: int,
    overlong: Overlong,
    framing: int = 2,
    from_left: bool = False,
) -> list[Sequence[int]]:
    """Each text's first (or last) `length` tokens; how many were cut is said in a warning, or the first is an error.

    framing: how many tokens frame a text.
    """
    for text, numbers in zip(texts, ids, strict=True):
        if not numbers:
            raise UserError(f"{text.where}: the tokenizer finds no words in this text.")
        if len(numbers) > length and overlong == "error":
            raise UserError(
                f"{text.where}: {len(numbers) + framing} tokens, but the model takes {length + framing}: shorten the "
                "text, raise --model.max-length, or choose --data.overlong truncate."
            )
    if cut := sum(len(numbers) > length for numbers in ids):
        warnings.warn(f"{cut} of {len(ids)} texts have more than {length + framing} tokens and were cut.", stacklevel=2)
    return [numbers[-length:] if from_left else numbers[:length] for numbers in ids]


# --- The data sets --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class TextData(DataSplits[Texts]):
    tokenizer: Tokenizer


@configclass
class TextDataset:
    """What all text data sets share. A new one adds its own options and `corpus`."""

    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)

    def corpus(self) -> Corpus:
        """Texts in three splits."""
        raise NotImplementedError

    def make_tokenizer(self, corpus: Corpus) -> Tokenizer:
        """The tokenizer of these texts where none is given or named: trained on the training texts."""
        texts = [part for text in corpus.train for part in text.texts]
        names = [text.where for text in corpus.train for _ in text.texts]
        return train_tokenizer(texts, self.tokenizer, names)

    @property
    def masks_tokens(self) -> bool:
        """Whether masked tokens are predicted."""
        return False

    @property
    def of_pairs(self) -> bool:
        """Whether each sample is a pair of texts."""
        return False

    @property
    def when_overlong(self) -> Overlong:
        return "truncate"

    def read(self, max_length: int, tokenizer: Tokenizer | None = None) -> TextData:
        """Texts as token ids. The tokenizer, if none is given or named, is trained on the training texts.

        max_length: most tokens of a text, with its frame.
        """
        corpus = self.corpus()
        if tokenizer is None and self.tokenizer.path is not None:
            tokenizer = Tokenizer.load(self.tokenizer.path)
        if tokenizer is None:
            tokenizer = self.make_tokenizer(corpus)
        if self.masks_tokens and tokenizer.mask is None:
            raise UserError("The tokenizer has no mask token, so masked tokens cannot be learnt: choose another.")
        parts = {
            split: self.encoded(texts, tokenizer, max_length, fixed=split != "train")
            for split, texts in corpus.parts().items()
        }
        return TextData(**parts, labels=corpus.labels, note=corpus.note, tokenizer=tokenizer)

    def encoded(self, texts: Sequence[Text], tokenizer: Tokenizer, max_length: int, fixed: bool) -> Texts:
        """fixed: for evaluation, in the order of their lengths, and always with the same tokens masked."""
        if any(text.second for text in texts):
            pairs = framed_pairs(texts, tokenizer, max_length, self.when_overlong)
            order = sorted(range(len(pairs)), key=lambda i: len(pairs[i].ids)) if fixed else range(len(pairs))
            ids, segments = ([getattr(pairs[i], name) for i in order] for name in ("ids", "segments"))
            return Texts([texts[i] for i in order], ids, segments)
        room = tokenizer.room(max_length)
        each = tokenizer.encode_each([text.text for text in texts], [text.where for text in texts])
        ids = [array("i", numbers) for numbers in each]
        if self.masks_tokens:
            texts, ids = in_pieces(texts, ids, room)
        else:
            ids = shortened(texts, ids, room, self.when_overlong, max_length - room, tokenizer.cuts_left)
        if fixed:  # the result is the same in any order, and this one has the least padding where there is any
            order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
            texts, ids = [texts[i] for i in order], [ids[i] for i in order]
        ids = [array("i", tokenizer.frame(numbers)) for numbers in ids]
        return MaskedTexts(texts, ids, tokenizer, fixed) if self.masks_tokens else Texts(texts, ids)


@configclass
class LabelledTexts(TextDataset):
    """What text data sets with labels share."""

    overlong: Overlong = "truncate"
    """What becomes of labelled texts of more tokens than the model takes."""

    @property
    def when_overlong(self) -> Overlong:
        return self.overlong


@configclass
class Docstrings(LabelledTexts):
    """Docstrings of Python's standard library, and the packages that they are from."""

    name: Name[Literal["docstrings"]] = "docstrings"

    def corpus(self) -> Corpus:
        return read_docstrings()


@configclass
class AnyTexts(Folds, LabelledTexts):
    """What text data sets share whose labels, if there are any, need not be used."""

    target: Target = "classes"
    """What is predicted: labels as classes, labels as numbers, or masked tokens."""

    @property
    def masks_tokens(self) -> bool:
        return self.target == "tokens"


def check_columns(columns: Sequence[str], target: Target, expected: str) -> None:
    if len(columns) not in (1, 2) or not all(columns):
        raise UserError(f"{expected}, not {len(columns)}.")
    if len(set(columns)) < len(columns):
        raise UserError(f"{expected}, but {columns[0]!r} is named twice.")
    if target == "tokens" and len(columns) == 2:
        raise UserError("Masked tokens are learnt from single texts, not from pairs: name one column of texts.")


@configclass
class TableOfTexts(AnyTexts):
    """Texts in rows with named columns."""

    columns: tuple[str, ...] = ("text",)
    """Column of the text, or the two columns of pairs: premise hypothesis."""

    def __post_init__(self):
        super().__post_init__()
        check_columns(self.columns, self.target, "--data.columns names the column of the texts, or the two of pairs")

    @property
    def of_pairs(self) -> bool:
        return len(self.columns) == 2


@configclass
class Manifest(TableOfTexts):
    """Texts, listed with their labels in a CSV or JSON Lines file."""

    name: Name[Literal["manifest"]] = "manifest"
    path: Path | None = None
    """The manifest."""
    encoding: str = "utf-8"
    """Of the manifest, as Python names it: utf-8, latin-1, utf-16, cp1252."""
    group: str = ""
    """Column of the manifest whose equal values are never in two splits (an author); `group` by default, if there."""

    def corpus(self) -> Corpus:
        path = required(self.path, self.name)
        return read_manifest(path, self.target, self, self.encoding, self.group, self.columns)


@configclass
class HuggingFace(AnyTexts):
    """A data set of the Hugging Face hub."""

    name: Name[Literal["huggingface"]] = "huggingface"
    dataset: str = ""
    """Its name."""
    fields: tuple[str, ...] = ("text", "label")
    """Its columns of texts (two of pairs: premise hypothesis label) and labels."""

    def __post_init__(self):
        super().__post_init__()
        check_columns(self.fields[:-1], self.target, "--data.fields names one or two columns of texts, then labels")

    @property
    def of_pairs(self) -> bool:
        return len(self.fields) == 3

    def corpus(self) -> Corpus:
        if not self.dataset:
            raise UserError("The huggingface data need --data.dataset, the name of a data set.")
        return read_huggingface(self.dataset, self.target, self, self.fields)
