"""Splits: samples to train on, to validate on during training, and to test on once at the end; and how they are cut."""

import random
from collections import Counter
from collections.abc import Callable, Collection, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from ..errors import UserError
from .cuts import Classes, cut
from .folds import cut_folds

Part = TypeVar("Part")
Other = TypeVar("Other")
S = TypeVar("S")


@dataclass(frozen=True, kw_only=True)
class DataSplits(Generic[Part]):
    """The three splits of a data set, each a data set of torch or a list of samples."""

    train: Part
    validation: Part
    test: Part
    labels: tuple[str, ...] = ()
    """Names of the classes."""
    note: str = ""
    """One sentence for the report that says where the validation and the test split come from."""

    def parts(self) -> dict[str, Part]:
        return {"train": self.train, "validation": self.validation, "test": self.test}

    def map(self, change: Callable[[Part], Other]) -> "DataSplits[Other]":
        """The same with each split changed."""
        parts = {split: change(part) for split, part in self.parts().items()}
        return DataSplits(**parts, labels=self.labels, note=self.note)


def make_splits(
    train: Sequence[S],
    validation: Sequence[S] = (),
    test: Sequence[S] = (),
    *,
    labels: tuple[str, ...] = (),
    classes: Callable[[S], Classes],
    group: Callable[[S], Any] | None = None,
    test_fraction: float | None = 0.2,
    validation_fraction: float = 0.1,
    fold: tuple[int, int] | None = None,
) -> DataSplits[list[S]]:
    """The splits that are given; the others are cut from the training samples, first the test and then the validation
    split. Cuts are stratified by class and always the same, so that runs with different seeds have the same test set.

    labels: names of the classes. group: samples of the same group are never cut apart.
    test_fraction: if None, no test split is cut: what validates serves as one, too.
    fold: the number, from 1, of the fold that is the test split, and how many folds there are.
    """
    if fold is not None:
        train, test = _cut_fold(train, [*validation, *test], classes, group, fold, labels)
    own_test, own_validation = bool(test), bool(validation)
    if not test and test_fraction is not None:
        counts = Counter(map(classes, train))
        number = min(counts, key=lambda number: counts[number], default=None)
        if counts[number] < 2 and isinstance(number, int) and group is None:
            raise UserError(
                f"Class {labels[number]!r} has a single sample: it needs two, one to train on and one to test."
            )
        train, test = _cut(train, classes, group, test_fraction)
    if not validation:
        train, validation = _cut(train, classes, group, validation_fraction)
    how = "" if classes(train[0]) is None else ", stratified by class"
    how += ", with each group in one split" if group else ""
    how += ", the same in every run"
    note = _note(own_validation, own_test, validation_fraction, test_fraction, how)
    if fold is not None:
        note = (
            f"Fold {fold[0]} of {fold[1]} is the test split, and {100 * validation_fraction:g} % of the rest are held "
            f"out for validation{how}."
        )
    held_out = [*validation]
    return DataSplits(train=[*train], validation=held_out, test=[*test] or held_out, labels=labels, note=note)


def _cut(
    samples: Sequence[S], classes: Callable[[S], Classes], group: Callable[[S], Any] | None, fraction: float
) -> tuple[list[S], list[S]]:
    parts = cut([*map(classes, samples)], None if group is None else [*map(group, samples)], fraction)
    train, held_out = ([samples[index] for index in part] for part in parts)
    return train, held_out


def _cut_fold(
    samples: Sequence[S],
    others: Sequence[S],
    classes: Callable[[S], Classes],
    group: Callable[[S], Any] | None,
    fold: tuple[int, int],
    labels: tuple[str, ...],
) -> tuple[list[S], list[S]]:
    if others:
        raise UserError(
            "--data.folds cuts data without splits of their own, and these have a validation or a test split: leave "
            "out the option or those splits."
        )
    number, count = fold
    groups = None if group is None else [*map(group, samples)]
    folds = cut_folds([*map(classes, samples)], groups, count, labels)
    test = {*folds[number - 1]}
    parts = ([sample for place, sample in enumerate(samples) if (place in test) == held] for held in (False, True))
    train, held_out = parts
    return train, held_out


def _note(own_validation: bool, own_test: bool, validation: float, test: float | None, how: str) -> str:
    if own_validation and own_test:
        return "The validation and the test split are the data's own."
    if own_test:
        return (
            f"Without a validation split of their own, {100 * validation:g} % of the training samples were held out "
            f"for it{how}."
        )
    if test is None:
        held_out = f"{100 * validation:g} % of the samples were held out for validation{how}"
        held_out = "The validation split is the data's own" if own_validation else held_out
        return f"{held_out}; there is no test split, and the last evaluation is of the validation split, too."
    if own_validation:
        return (
            f"Without a test split of their own, {100 * test:g} % of the training samples were held out for it{how}; "
            "the validation split is the data's own."
        )
    return (
        f"Without splits of their own, {100 * test:g} % of the samples were held out for testing, and "
        f"{100 * validation:g} % of the rest for validation{how}."
    )


def few_per_class(samples: Sequence, count: int | None) -> Sequence:
    """So many samples (input, class number) of each class, the same for every seed; all if None."""
    if count is None:
        return samples
    if count < 1:
        raise UserError(f"--data.per-class must be at least 1, not {count}.")
    order = list(range(len(samples)))
    random.Random(0).shuffle(order)
    seen: Counter[int] = Counter()
    chosen = []
    labels = [label for _, label in samples]
    for index in order:
        label = labels[index]
        seen[label] += 1
        if seen[label] <= count:
            chosen.append(index)
    return [samples[index] for index in sorted(chosen)]


def connected(samples: Sequence[Collection[Hashable]]) -> list[int]:
    """A number for each sample, the same for samples that share something, also by way of others.

    samples: what each sample may share with others, such as its group and its files.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    nodes: dict[Hashable, int] = {}
    edges = [
        (place, len(samples) + nodes.setdefault(what, len(nodes)))
        for place, shared in enumerate(samples)
        for what in shared
    ]
    rows, columns = zip(*edges, strict=True) if edges else ((), ())
    size = len(samples) + len(nodes)
    _, numbers = connected_components(
        coo_array(([1] * len(edges), (rows, columns)), shape=(size, size)), directed=False
    )
    return numbers[: len(samples)].tolist()
