"""Labelled files on disk, whatever is in them: a directory per class, or a manifest. And the split into train and test.

`folder`: root/<class>/<file>, split here, or root/train/<class>/<file> and root/test/<class>/<file>.
`manifest`: a CSV (with a header) or JSON Lines file with the columns `path` (relative to the manifest), `label`, and
optionally `split`.
"""

import math
import os
import random
import warnings
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import UserError
from ..files import read_bytes
from .folders import find_classes
from .manifest import SEVERAL, listed_file, manifest_rows, normal_name, parts_of


class Sample(NamedTuple):
    path: Path
    label: int | tuple[int, ...]
    """The class number; all of them where samples have several."""


class Samples(NamedTuple):
    train: list[Sample]
    test: list[Sample]
    labels: tuple[str, ...]


Listed = dict[str, Sample]
"""Samples by what names them in messages."""


class Used(NamedTuple):
    """What a file is used for, and where that is said."""

    where: str
    path: Path
    label: Any = None

    def __str__(self) -> str:
        return self.where if self.where == str(self.path) else f"{self.where} ({self.path})"


def read_folder(root: Path, suffixes: Collection[str], test_fraction: float) -> Samples:
    """Files whose name ends in one of `suffixes` (lower case, with the dot), one directory per class."""
    found = find_classes(root, suffixes)
    labels = _class_names(found.train, root)
    train, test = (
        {str(file): Sample(file, number) for number, label in enumerate(labels) for file in files.get(label, ())}
        for files in (found.train, found.test or {})
    )
    return _samples(root, train, test, labels, test_fraction)


def read_manifest(path: Path, test_fraction: float, multilabel: bool = False) -> Samples:
    """multilabel: rows have any number of labels, separated by semicolons or in a list of JSON."""
    rows = manifest_rows(path, required=("path", "label"), lists=("label",) if multilabel else ())
    parts = parts_of(path, rows)
    names = {where: _labels_of(where, rows[where], multilabel) for part in parts for where in part}
    labels = _class_names({name for several in names.values() for name in several}, path)
    number = {label: index for index, label in enumerate(labels)}

    def read(where: str) -> Sample:
        numbers = tuple(number[name] for name in names[where])
        return Sample(listed_file(path.parent, where, rows[where]["path"]), numbers if multilabel else numbers[0])

    train, test = ({where: read(where) for where in part} for part in parts)
    return _samples(path, train, test, labels, test_fraction)


def _labels_of(where: str, row: Mapping[str, str], multilabel: bool) -> tuple[str, ...]:
    if not multilabel:
        return (row["label"],)
    names = tuple(dict.fromkeys(filter(None, map(normal_name, row["label"].split(SEVERAL)))))
    if not names:
        raise UserError(f"{where} has no 'label'.")
    return names


def _class_names(names: Iterable[str], source: Path) -> tuple[str, ...]:
    labels = tuple(sorted(names))
    if len(labels) < 2:
        raise UserError(f"{source} has {len(labels)} class{'' if len(labels) == 1 else 'es'}: at least two are needed.")
    return labels


def _samples(source: Path, train: Listed, test: Listed, labels: tuple[str, ...], test_fraction: float) -> Samples:
    """The parts, of which the test part is split off where the data have none."""
    if not test:
        train, test = _split(train, labels, test_fraction)
    learnt, tested = ({number for sample in part.values() for number in _numbers(sample)} for part in (train, test))
    if unlearnt := tested - learnt:
        raise UserError(f"{source}: label {labels[min(unlearnt)]!r} is only in the test split, so it can't be learnt.")
    check_files(
        *((Used(where, sample.path, {*_numbers(sample)}) for where, sample in part.items()) for part in (train, test))
    )
    return Samples([*train.values()], [*test.values()], labels)


def _numbers(sample: Sample) -> tuple[int, ...]:
    return sample.label if isinstance(sample.label, tuple) else (sample.label,)


def _split(samples: Listed, labels: Sequence[str], test_fraction: float) -> tuple[Listed, Listed]:
    """Train and test, each class in the same share; of samples with several labels, each label is in the train part."""
    places, targets = list(samples), [_numbers(sample) for sample in samples.values()]
    if any(isinstance(sample.label, tuple) for sample in samples.values()):
        train, test = _split_learnt(targets, test_fraction)
    else:
        counts = Counter(number for (number,) in targets)
        label, fewest = min(counts.items(), key=lambda item: item[1])
        if fewest < 2:
            raise UserError(
                f"Class {labels[label]!r} has a single file: it needs two, one to train on and one to test."
            )
        train, test = stratified_split([number for (number,) in targets], test_fraction)
    return tuple({places[index]: samples[places[index]] for index in part} for part in (train, test))


def _split_learnt(targets: Sequence[tuple[int, ...]], test_fraction: float) -> tuple[list[int], list[int]]:
    """Indices of train and test, where each sample has several labels; no label is in test alone."""
    train, test = random_split(len(targets), test_fraction)
    learnt = {number for index in train for number in targets[index]}
    held_out = []
    for index in test:
        part = held_out if learnt.issuperset(targets[index]) else train
        part.append(index)
        learnt.update(targets[index])
    if not held_out:
        raise UserError("Too few samples share their labels with others for some to be held out: add more.")
    return sorted(train), held_out


def check_files(train: Iterable[Used], test: Iterable[Used]) -> None:
    """Whatever path leads there, no file may be tested on that is trained on, or be used under different labels.

    Copies that are tested on are counted in a warning.
    """
    seen: dict[tuple[int, int], tuple[str, Used]] = {}
    alike: dict[str, list[tuple[tuple[str, int], Used]]] = {"train": [], "test": []}
    for part, uses in (("train", train), ("test", test)):
        for use in uses:
            status = os.stat(use.path)
            first, before = seen.setdefault((status.st_dev, status.st_ino), (part, use))
            if use.label != before.label:
                raise UserError(f"{before} and {use} are the same file under different labels: leave one.")
            if part != first:
                raise UserError(
                    f"{before} and {use} are the same file, once to train on and once to test on: leave one."
                )
            alike[part].append(((use.path.name, status.st_size), use))
    # Only files of one name and size are compared, so that few have to be read.
    shared = {key for key, _ in alike["train"]} & {key for key, _ in alike["test"]}
    learnt, tested = (
        [(sha256(read_bytes(use.path)).digest(), use) for key, use in alike[part] if key in shared] for part in alike
    )
    known = dict(learnt)
    if copies := [(known[content], use) for content, use in tested if content in known]:
        first = " and ".join(map(str, copies[0]))
        warnings.warn(
            f"{len(copies)} of {len(alike['test'])} files to test on are copies of files that are trained on, such as "
            f"{first}.",
            stacklevel=2,
        )


def stratified_split(labels: Sequence[int], test_fraction: float) -> tuple[list[int], list[int]]:
    """Indices of train and test; fixed, so that runs with different seeds are tested on the same samples."""
    from sklearn.model_selection import train_test_split

    if not 0 < test_fraction < 1:
        raise UserError(f"--data.test-fraction must be between 0 and 1, not {test_fraction}.")
    classes = len(set(labels))
    size = min(max(math.ceil(test_fraction * len(labels)), classes), len(labels) - classes)
    train, test = train_test_split(range(len(labels)), test_size=size, random_state=0, stratify=labels)
    for part, other in ((train, test), (test, train)):  # of a rare class, all may have come to lie in one
        first = {labels[index]: index for index in sorted(other, reverse=True)}
        moved = {first[label] for label in set(first) - {labels[index] for index in part}}
        part.extend(moved)
        other[:] = [index for index in other if index not in moved]
    return sorted(train), sorted(test)


def random_split(count: int, test_fraction: float) -> tuple[list[int], list[int]]:
    """Indices of train and test, whatever their labels; fixed as in `stratified_split`."""
    if count < 2:
        raise UserError("There is a single sample: one is needed to train on and one to test.")
    return stratified_split([0] * count, test_fraction)


def few_per_class(samples: list, count: int | None) -> list:
    """So many samples (input, class number) of each class, the same for every seed; all if None."""
    if count is None:
        return samples
    if count < 1:
        raise UserError(f"--data.per-class must be at least 1, not {count}.")
    order = list(range(len(samples)))
    random.Random(0).shuffle(order)
    seen: Counter[int] = Counter()
    chosen = []
    for index in order:
        label = samples[index][1]
        seen[label] += 1
        if seen[label] <= count:
            chosen.append(index)
    return [samples[index] for index in sorted(chosen)]
