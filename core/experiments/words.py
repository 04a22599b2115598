"""The words of a command line, as options: what sweeps and searches read before the options are parsed."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple


class Option(NamedTuple):
    """A word of the command line that begins with --, and the words that follow it."""

    word: str
    values: tuple[str, ...]

    @property
    def field(self) -> str:
        """The name of the experiment's field: train.batch_size."""
        return self.word.removeprefix("--").split("=")[0].replace("-", "_")

    @property
    def given(self) -> list[str]:
        """Its values, in either form: --name VALUE or --name=VALUE."""
        return [*self.word.split("=", 1)[1:], *self.values]


def read_options(words: Sequence[str]) -> list[Option]:
    """The options of a command line; words before the first option belong to an empty one."""
    groups: list[list[str]] = [[""]]
    for word in words:
        if word.startswith("--"):
            groups.append([word])
        else:
            groups[-1].append(word)
    return [Option(word, tuple(values)) for word, *values in groups if word or values]


def words_of(options: Sequence[Option]) -> list[str]:
    return [word for option in options for word in (option.word, *option.values) if word]


def out_option(words: Sequence[str]) -> Path | None:
    """The directory that --out names."""
    out = None
    for option in read_options(words):
        if option.field == "out":
            out = Path(option.given[0]) if option.given else None
    return out
