"""ListOps: nested operations on digits and their value, generated as for Long Range Arena (Tay et al. 2021)."""

import csv
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Literal

import tokenizers
from annotated_types import Interval
from tokenizers import models, pre_tokenizers

from core import UserError
from core.config import Count, Natural, Size, Whole, configclass
from core.data.dataset import Name, SplitFractions
from core.files import reason, replacing, user_cache

from .corpora import Corpus, read_manifest
from .datasets import TextDataset
from .tokenizer import SPECIALS, Tokenizer, TokenizerConfig

OPERATORS = ("[MIN", "[MAX", "[MED", "[SM")  # minimum, maximum, median rounded down, sum modulo 10
CLOSE = "]"
DIGITS = tuple("0123456789")
NESTED = 0.25  # probability that an argument is an operation, where the depth allows one
SPLITS = ("test", "validation", "train")
MOST_TRIES = 100_000  # expressions of a wrong length, one after the other


@configclass
class ListOps(TextDataset):
    """Nested operations on digits, and their value: ten classes."""

    name: Name[Literal["listops"]] = "listops"
    tokenizer: Name[TokenizerConfig] = TokenizerConfig()
    target: Literal["classes", "tokens"] = "classes"
    """What is predicted: the value of an expression, or masked tokens."""
    samples: Count = 96_000
    """Expressions to train on."""
    held_out: Count = 2000
    """Expressions to validate on, and as many others to test on."""
    longer_than: Natural = 500
    """Expressions have more tokens than this."""
    shorter_than: Size = 2000
    """Expressions have fewer tokens than this."""
    depth: Annotated[Whole, Interval(ge=2, le=100)] = 10
    """Levels of an expression, the digits being the deepest."""
    arguments: Annotated[Whole, Interval(ge=2, le=1000)] = 10
    """Most arguments of an operation; it has two at least."""
    cache: Path | None = None
    """Directory that keeps the expressions, so that they are generated once; None: the user's cache."""

    @property
    def masks_tokens(self) -> bool:
        return self.target == "tokens"

    def corpus(self) -> Corpus:
        data = read_manifest(self.generated(), self.target, SplitFractions(), "utf-8")
        return replace(data, note="The splits were generated, each from a seed of its own.")

    def make_tokenizer(self, corpus: Corpus) -> Tokenizer:
        return listops_tokenizer()

    def generated(self) -> Path:
        """The manifest of the expressions, which is written if it is not there yet."""
        own = (self.samples, self.held_out, self.longer_than, self.shorter_than, self.depth, self.arguments)
        digest = sha256(repr((*own, NESTED)).encode()).hexdigest()[:16]
        try:
            folder = self.cache or user_cache("listops")
            path = folder / f"listops-{digest}.csv"
            if not path.is_file():
                print(f"Generating {self.samples + 2 * self.held_out:,} expressions for {path}", file=sys.stderr)
                folder.mkdir(parents=True, exist_ok=True)
                self._write(path)
        except (OSError, RuntimeError) as error:  # RuntimeError: there is no home directory
            raise UserError(
                f"The expressions cannot be kept ({reason(error)}): name a directory with --data.cache."
            ) from None
        return path

    def _write(self, path: Path) -> None:
        counts = {"train": self.samples}
        with replacing(path) as partial, partial.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(("text", "label", "split"))
            for split in SPLITS:
                expressions = self.expressions(split)
                for _ in range(counts.get(split, self.held_out)):
                    tokens, value = next(expressions)
                    writer.writerow((" ".join(tokens), value, split))

    def expressions(self, split: str) -> Iterator[tuple[list[str], int]]:
        """Expressions of a split, each with its value, without end; always the same.

        What is too long or too short is drawn again, so that all expressions of the right length keep the probabilities
        that they have in the grammar.
        """
        draw, tried = random.Random(f"listops {split}"), 0
        while True:
            tokens: list[str] = []
            value = self._grow(draw.random, 1, tokens)
            tried += 1
            if value is not None and self.longer_than < len(tokens) < self.shorter_than:
                yield tokens, value
                tried = 0
            elif tried == MOST_TRIES:
                raise UserError(
                    f"Of {tried:,} expressions none has more than {self.longer_than} and fewer than "
                    f"{self.shorter_than} tokens: choose other lengths, a larger --data.depth or more arguments."
                )

    def _grow(self, draw: Callable[[], float], level: int, tokens: list[str]) -> int | None:
        """Append an expression to the tokens and return its value; None if it becomes too long."""
        if level == self.depth or draw() > NESTED:
            digit = int(10 * draw())
            tokens.append(DIGITS[digit])
            return digit if len(tokens) < self.shorter_than else None
        place = len(tokens)
        tokens.append("")
        values = []
        for _ in range(2 + int((self.arguments - 1) * draw())):
            value = self._grow(draw, level + 1, tokens)
            if value is None:
                return None
            values.append(value)
        tokens[place] = operator = OPERATORS[int(4 * draw())]
        tokens.append(CLOSE)
        return value_of(operator, values)


def value_of(operator: str, values: Sequence[int]) -> int:
    """The value of an operation on the values of its arguments."""
    match operator:
        case "[MIN":
            return min(values)
        case "[MAX":
            return max(values)
        case "[SM":
            return sum(values) % 10
    ranked, middle = sorted(values), len(values) // 2
    return ranked[middle] if len(values) % 2 else (ranked[middle - 1] + ranked[middle]) // 2


def listops_tokenizer() -> Tokenizer:
    """A token for each digit, each operator with its bracket, and the closing bracket."""
    special = [spellings[0] for spellings in SPECIALS.values()]
    numbers = {token: number for number, token in enumerate((*special, *DIGITS, *OPERATORS, CLOSE))}
    backend = tokenizers.Tokenizer(models.WordLevel(numbers, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.add_special_tokens(special)
    return Tokenizer(backend)
