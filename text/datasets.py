"""Texts to learn from, as token ids: framed, cut or in pieces, padded to the longest; and with hidden words."""

import warnings
from collections.abc import Sequence
from dataclasses import field
from itertools import pairwise
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from jaxtyping import Int, Shaped
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset

from core import IGNORE, Batch, UserError
from core.config import BetweenZeroAndOne, configclass

from .corpora import Corpus, Target, Text, read_docstrings, read_huggingface, read_lines, read_manifest, read_manuals
from .tokenizer import Tokenizer, TokenizerConfig, train_tokenizer

HIDDEN = 0.15  # share of the words that are to be told


@configclass
class DataConfig:
    name: Literal["docstrings", "manuals", "manifest", "lines", "huggingface"] = "docstrings"
    """Which data."""
    path: Path | None = None
    """The manifest, or the text file or folder of them."""
    encoding: str = "utf-8"
    """Of the files, as Python names it: utf-8, latin-1, utf-16, cp1252."""
    dataset: str = ""
    """Name of the Hugging Face data set."""
    fields: tuple[str, str] = ("text", "label")
    """Its columns of texts and labels."""
    target: Target = "classes"
    """What is learnt from a manifest or Hugging Face data set: its labels as classes, as numbers, or hidden words."""
    test_fraction: BetweenZeroAndOne = 0.2
    """Share of test texts where the data come without a split of their own."""
    overlong: Literal["truncate", "error"] = "truncate"
    """What becomes of labelled texts of more tokens than the model takes (hidden words: they are cut in pieces)."""
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)


class TextData(NamedTuple):
    train: "Texts"
    test: "Texts"
    labels: tuple[str, ...]
    tokenizer: Tokenizer
    validation: "Texts | None" = None
    note: str = ""
    """Where the validation and the test split come from."""


class Texts(Dataset):
    """Texts as framed word numbers, with what is to be told of each.

    lengths: the number of tokens of each, for batches of like length.
    """

    def __init__(self, texts: Sequence[Text], ids: Sequence[Sequence[int]]):
        self.texts, self.ids = texts, [torch.tensor(numbers) for numbers in ids]
        self.lengths = [len(numbers) for numbers in ids]

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> tuple[Int[Tensor, "n"], Shaped[Tensor, ""]]:
        target = self.texts[index].target
        return self.ids[index], torch.tensor(target, dtype=torch.float64 if isinstance(target, float) else torch.long)


class MaskedTexts(Texts):
    """Texts with hidden words: other ones each time, or (fixed) always the same, as is fit for a test set."""

    def __init__(self, texts: Sequence[Text], ids: Sequence[Sequence[int]], tokenizer: Tokenizer, fixed: bool):
        super().__init__(texts, ids)
        self.tokenizer, self.fixed = tokenizer, fixed

    def __getitem__(self, index: int) -> tuple[Int[Tensor, "n"], Int[Tensor, "n"]]:
        generator = torch.Generator().manual_seed(index) if self.fixed else None
        return hide(self.ids[index], self.tokenizer, generator)


def hide(
    ids: Int[Tensor, "n"], tokenizer: Tokenizer, generator: torch.Generator | None = None
) -> tuple[Int[Tensor, "n"], Int[Tensor, "n"]]:
    """Inputs and targets: of the hidden words, 80 % become [MASK], 10 % any word, and 10 % stay as they are.

    Devlin et al. 2019, section 3.1. At least one word of each text is hidden, and never its frame.
    """
    inner = len(ids) - len(tokenizer.before) - len(tokenizer.after)
    count = max(1, round(HIDDEN * inner))
    hidden = len(tokenizer.before) + torch.randperm(inner, generator=generator)[:count]
    fate = torch.rand(count, generator=generator)
    inputs, targets = ids.clone(), torch.full_like(ids, IGNORE)
    targets[hidden] = ids[hidden]
    inputs[hidden[fate < 0.8]] = tokenizer.mask
    anything = hidden[fate >= 0.9]
    inputs[anything] = torch.randint(tokenizer.size, anything.shape, generator=generator)
    return inputs, targets


def collate(samples: list[tuple[Int[Tensor, "_"], Shaped[Tensor, "..."]]], pad: int) -> Batch:
    """Padded to the longest; no mask where nothing is padded, which is faster."""
    ids, targets = zip(*samples, strict=True)
    lengths = torch.tensor([len(numbers) for numbers in ids])
    mask = None if lengths.min() == lengths.max() else torch.arange(int(lengths.max())) < lengths[:, None]
    inputs = pad_sequence(ids, batch_first=True, padding_value=pad), mask
    if targets[0].ndim:
        return Batch(inputs, pad_sequence(targets, batch_first=True, padding_value=IGNORE))
    return Batch(inputs, torch.stack(targets))


def read_corpus(config: DataConfig) -> Corpus:
    if config.name in ("manifest", "lines") and config.path is None:
        raise UserError(f"The {config.name} data need --data.path.")
    match config.name:
        case "docstrings":
            return read_docstrings()
        case "manuals":
            return read_manuals(config.test_fraction)
        case "lines":
            return read_lines(config.path, config.test_fraction, config.encoding)
        case "manifest":
            return read_manifest(config.path, config.target, config.test_fraction, config.encoding)
    if not config.dataset:
        raise UserError("The huggingface data need --data.dataset, the name of a data set.")
    return read_huggingface(config.dataset, config.target, config.test_fraction, config.fields)


def read_data(config: DataConfig, max_length: int, tokenizer: Tokenizer | None = None) -> TextData:
    """Training and test texts. The tokenizer, if none is given or named, is trained on the training texts.

    max_length: most tokens of a text, with its frame.
    """
    corpus = read_corpus(config)
    if tokenizer is None and config.tokenizer.path is not None:
        tokenizer = Tokenizer.load(config.tokenizer.path)
    if tokenizer is None:
        texts, names = [text.text for text in corpus.train], [text.where for text in corpus.train]
        tokenizer = train_tokenizer(texts, config.tokenizer, names)
    if learns_words(config) and tokenizer.mask is None:
        raise UserError("The tokenizer has no mask token, so hidden words cannot be learnt: choose another.")
    room = tokenizer.room(max_length)
    parts = []
    for texts, is_test in ((corpus.train, False), (corpus.test, True)):
        ids = tokenizer.encode([text.text for text in texts], [text.where for text in texts])
        if learns_words(config):
            texts, ids = in_pieces(texts, ids, room)
        else:
            ids = shortened(texts, ids, room, config.overlong, max_length - room, tokenizer.cuts_left)
        if is_test:  # like lengths together: no order is better than another, and this one has the least padding
            order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
            texts, ids = [texts[i] for i in order], [ids[i] for i in order]
        ids = [tokenizer.frame(numbers) for numbers in ids]
        parts.append(MaskedTexts(texts, ids, tokenizer, is_test) if learns_words(config) else Texts(texts, ids))
    return TextData(*parts, corpus.labels, tokenizer)


def learns_words(config: DataConfig) -> bool:
    return config.name in ("manuals", "lines") or (config.name != "docstrings" and config.target == "tokens")


def in_pieces(texts: Sequence[Text], ids: Sequence[list[int]], length: int) -> tuple[list[Text], list[list[int]]]:
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
    ids: Sequence[list[int]],
    length: int,
    overlong: Literal["truncate", "error"],
    framing: int = 2,
    from_left: bool = False,
) -> list[list[int]]:
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
