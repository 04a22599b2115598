"""The predict commands share this: classifiers, their most probable classes, and output files that replace none."""

import os
from collections import Counter
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from unicodedata import normalize

from jaxtyping import Float
from torch import Tensor

from ..errors import UserError
from ..files import reason
from ..models.hub import M

USUAL_TOP = 3
LONGEST_NAME = 255  # bytes, of a file on common file systems


def load_classifier(kind: type[M], run: Path, modality: str) -> M:
    """The trained model of a run, which must predict classes."""
    model = kind.from_run(run, modality)
    if not model.config.classes:
        raise UserError(f"The model in {run} predicts no classes: train it on some with --init.")
    return model


def most_probable(probabilities: Float[Tensor, "classes"], labels: Sequence[str], count: int) -> list[str]:
    """The most probable classes, each with its probability; a class without a label is named by its number."""
    best = zip(*(values.tolist() for values in probabilities.topk(count)), strict=True)
    return [f"{labels[number] if labels else number} {probability:.1%}" for probability, number in best]


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


def make_output_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder} cannot hold the output ({reason(error)}): name a directory with --out.") from None


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
