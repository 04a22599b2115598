"""The predict commands share this: what becomes of predictions, and output files that replace none."""

import math
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any, Protocol, runtime_checkable
from unicodedata import normalize

from jaxtyping import Float
from torch import Tensor

from ..errors import UserError
from ..files import reason
from ..models.targets import TargetConfig
from .results import Columns, Row

USUAL_TOP = 3
LONGEST_NAME = 255  # bytes, of a file on common file systems


def most_probable(probabilities: Float[Tensor, "classes"], labels: Sequence[str], count: int) -> list[str]:
    """The most probable classes, each with its probability; a class without a label is named by its number."""
    best = zip(*(values.tolist() for values in probabilities.topk(count)), strict=True)
    return [f"{labels[number] if labels else number} {probability:.1%}" for probability, number in best]


@runtime_checkable
class Form(Protocol):
    """How what a model predicts of each input becomes a row of a table."""

    @property
    def columns(self) -> Columns: ...

    def rows(self, predictions: Any) -> list[Row]: ...

    def say(self, row: Row) -> str | None:
        """What is printed of a row; None: the row itself, as JSON."""
        ...


@dataclass(frozen=True)
class Classes:
    """The `top` most probable classes, each with its probability; a class without a label is named by its number."""

    labels: Sequence[str]
    top: int

    @property
    def columns(self) -> Columns:
        return {name: kind for pair in self._names() for name, kind in zip(pair, ("text", "number"), strict=True)}

    def rows(self, predictions: Float[Tensor, "b classes"]) -> list[Row]:
        values, numbers = (found.tolist() for found in predictions.topk(self.top))
        return [
            {
                name: value
                for (label, of_label), number, probability in zip(self._names(), best, chances, strict=True)
                for name, value in (
                    (label, self.labels[number] if self.labels else str(number)),
                    (of_label, significant(probability)),
                )
            }
            for chances, best in zip(values, numbers, strict=True)
        ]

    def say(self, row: Row) -> str:
        return ", ".join(f"{label} {probability:.1%}" for label, probability in self.pairs(row))

    def pairs(self, row: Row) -> list[tuple[str, float]]:
        """The classes of a row, each with its probability."""
        return [(row[label], row[probability]) for label, probability in self._names()]

    def _names(self) -> list[tuple[str, str]]:
        ends = ["", *(f"_{number}" for number in range(2, self.top + 1))]
        return [(f"label{end}", f"probability{end}") for end in ends]


@dataclass(frozen=True)
class Vectors:
    """One vector per input."""

    columns: Columns = field(default_factory=lambda: {"vector": "vector"})

    def rows(self, predictions: Float[Tensor, "b d"]) -> list[Row]:
        return [{"vector": [*map(significant, vector)]} for vector in predictions.float().tolist()]

    def say(self, row: Row) -> None:
        """As JSON."""


@dataclass(frozen=True)
class Numbers:
    """A number for each input: what the model predicts is standardised."""

    config: TargetConfig
    columns: Columns = field(default_factory=lambda: {"prediction": "number"})

    def rows(self, predictions: Float[Tensor, "b 1"]) -> list[Row]:
        mean, std = self.config.target_mean, self.config.target_std
        return [{"prediction": value * std + mean} for value in predictions[:, 0].tolist()]

    def say(self, row: Row) -> str:
        """To a thousandth of the targets' standard deviation."""
        size = abs(self.config.target_mean) / self.config.target_std
        digits = 4 + math.floor(math.log10(min(max(size, 1.0), 1e13)))
        return f"{row['prediction']:.{digits}g}"


def headline(row: Row) -> str:
    """The most probable class of a row and its probability, or the number that is predicted."""
    return f"{row['label']} {row['probability']:.1%}" if "label" in row else f"{row['prediction']:.4g}"


def class_form(run: Path | str, options: Any, config: TargetConfig) -> tuple[Form, bool]:
    """How the predictions of a model of this config become rows, and whether they are vectors: if it has no classes, or
    by --embed. options: with `top` and `embed`."""
    predicts_classes = config.classes and not config.predicts_number
    if options.top is not None and (options.embed or not predicts_classes):
        why = "beside --embed" if options.embed else f"because the model in {run} predicts no classes"
        raise UserError(f"--top has no effect {why}: leave it out.")
    if options.embed or not config.classes:
        return Vectors(), True
    if config.predicts_number:
        return Numbers(config), False
    return Classes(config.labels, shown_classes(options.top, config.classes)), False


def significant(value: float) -> float:
    """A number of 32 bits without the digits that it does not have."""
    return float(f"{value:.7g}")


def shown_classes(top: int | None, classes: int, what: str = "classes") -> int:
    """How many classes to show: the value of --top, or at most three without it."""
    if top is not None and top > classes:
        raise UserError(f"--top {top} is more than the {classes} {what} of the model: choose at most {classes}.")
    return min(USUAL_TOP, classes) if top is None else top


def check_finite(predictions: Float[Tensor, "..."], model: Path | str) -> None:
    """Refuse predictions that are NaN or infinite. model: where it was read from."""
    if not predictions.isfinite().all():
        raise UserError(
            f"The model in {model} predicts values that are not finite numbers, so its weights are damaged or its "
            "training diverged: train it again, for instance at a lower rate."
        )


def make_output_folder(folder: Path, option: str = "--out") -> None:
    """option: that names the folder, for messages."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder} cannot hold the output ({reason(error)}): name a directory with {option}.") from None


def output_names(inputs: Sequence[Path], folder: Path, suffix: str) -> list[Path]:
    """A new file in `folder` for each input, named after it.

    No input and no other file is overwritten: a name that is taken gets a number. Names that differ only in case or in
    the encoding of accents count as equal, as on some file systems.
    """
    stems = [_stem(path, suffix) for path in inputs]
    times = Counter(map(_folded, stems))
    numbers = {name: count(1) for name in times}
    taken: set[str] = set()
    names = []
    for stem in stems:
        several, numbered = times[_folded(stem)] > 1, numbers[_folded(stem)]
        candidates = (f"{stem}-{number}" if several or number > 1 else stem for number in numbered)
        free = (n for n in candidates if _folded(n) not in taken and not os.path.lexists(folder / f"{n}{suffix}"))
        name = next(free)
        taken.add(_folded(name))
        names.append(folder / f"{name}{suffix}")
    return names


def _stem(path: Path, suffix: str) -> str:
    """A file's name without its own suffix, short enough for another suffix and a number."""
    stem = path.stem
    while len(os.fsencode(stem)) > LONGEST_NAME - len(os.fsencode(suffix)) - len("-1000000"):
        stem = stem[:-1]
    return stem


def _folded(name: str) -> str:
    return normalize("NFC", name).casefold()
