"""Samples with labels and groups, from folders, manifests or elsewhere, to numbered classes in three splits.

A folder has root/<class>/<file>, or root/train/<class>/<file> and the like for the other splits. A manifest is a CSV
(with a header) or JSON Lines file with a sample in each row.
"""

import os
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal, NamedTuple

from ..errors import UserError
from ..files import File, read_bytes
from .dataset import Folds, SplitFractions, ValidationFraction
from .folders import find_classes
from .manifest import PROSE, SEVERAL, Row, listed_file, manifest_rows, normal_name, rows_of_splits
from .splits import DataSplits, connected, make_splits
from .targets import Label, number_of

PURPOSES = {"train": "to train on", "validation": "to validate on", "test": "to test on"}


class Entry(NamedTuple):
    """A sample as it is listed."""

    where: str
    """Names the sample in messages: its file, or the manifest's file and row."""
    sample: Any
    label: str | tuple[str, ...] | None = None
    """Name of the class; the names of all where samples have several."""
    target: Any = None
    """What is predicted: a number, or the number (with several labels: numbers) of the class, as the label says."""
    group: str = ""
    """Samples of the same group are never in two splits; empty for none."""
    files: tuple[Path, ...] = ()

    def __str__(self) -> str:
        other = [str(file) for file in self.files if str(file) != self.where]
        return f"{self.where} ({', '.join(other)})" if other else self.where


Entries = Mapping[str, Sequence[Entry]]
"""By the name of their split."""


class Sample(NamedTuple):
    path: File
    label: Label


def read_folder(root: Path, suffixes: Collection[str], fractions: SplitFractions) -> DataSplits[list[Sample]]:
    """Files whose name ends in one of `suffixes` (lower case, with the dot), one directory per class."""
    entries = {
        split: [Entry(str(file), file, label, files=(file,)) for label in sorted(files) for file in files[label]]
        for split, files in find_classes(root, suffixes).items()
    }
    return _files(split_entries(root, entries, fractions))


def read_files(
    path: Path, fractions: SplitFractions, kind: Literal["class", "classes", "number"] = "class", *, group: str = ""
) -> DataSplits[list[Sample]]:
    """A manifest with the columns `path` (relative to the manifest), `label`, and optionally `split` and `group`.

    kind: of the labels; rows have any number of classes, separated by semicolons or in a list of JSON.
    """

    def entry(where: str, row: Row) -> Entry:
        file, written = listed_file(path.parent, where, row["path"]), row["label"]
        if kind == "number":
            return Entry(where, file, target=number_of(where, written), files=(file,))
        return Entry(where, file, _names(where, written) if kind == "classes" else written, files=(file,))

    lists = ("label",) if kind == "classes" else ()
    return _files(read_manifest(path, entry, fractions, required=("path", "label"), lists=lists, group=group))


def read_manifest(
    path: Path, entry: Callable[[str, Row], Entry], fractions: SplitFractions, **columns: Any
) -> DataSplits[list[Entry]]:
    """The rows of a manifest as samples in three splits. columns: see `manifest_entries`."""
    return split_entries(path, manifest_entries(path, entry, **columns), fractions)


def manifest_entries(
    path: Path,
    entry: Callable[[str, Row], Entry],
    *,
    required: Sequence[str],
    optional: Sequence[str] = (),
    lists: Collection[str] = (),
    prose: Collection[str] = PROSE,
    encoding: str = "utf-8",
    group: str = "",
) -> dict[str, list[Entry]]:
    """Rows with the required and perhaps the optional columns; entry: makes the sample of a row, without its group.

    lists: columns in which JSON may have a list. prose: columns of texts.
    group: the column of the groups; by default `group`, if there is one.
    """
    column = group.strip().casefold() or "group"
    needed = (*required, column) if group else required
    rows = manifest_rows(path, needed, encoding, (*optional, "split", column), lists, prose)
    return {
        split: [entry(where, rows[where])._replace(group=rows[where].get(column, "")) for where in places]
        for split, places in rows_of_splits(path, rows).items()
    }


def split_entries(source: Path | str, entries: Entries, fractions: ValidationFraction) -> DataSplits[list[Entry]]:
    """The three splits, of which those that are missing are cut from the training samples; classes are numbered by
    their names in alphabetical order.

    Samples that share a group or a file are in the same split. Refused are classes that training does not know.
    fractions: no test split is cut where there is no fraction for it: then the validation split is the test split, too.
    """
    every = [entry for split in PURPOSES for entry in entries.get(split, ())]
    labels = tuple(sorted({name for entry in every for name in _names_of(entry)}))
    if len(labels) < 2 and all(entry.label is not None for entry in every):
        raise UserError(f"{source} has {len(labels)} class{'es' * (not labels)}: at least two are needed.")
    known = {name for entry in entries["train"] for name in _names_of(entry)}
    for split in ("validation", "test"):
        names = {name for entry in entries.get(split, ()) for name in _names_of(entry)}
        if unknown := sorted(names - known):
            raise UserError(f"{source}: label {unknown[0]!r} is only in the {split} split, so it can't be learnt.")
    check_splits(entries)
    groups = connected([{*map(_identity, entry.files), *([entry.group] if entry.group else [])} for entry in every])
    if len(set(groups)) == len(every):  # nothing is shared
        groups = []
    numbers = {label: number for number, label in enumerate(labels)}
    numbered = iter([_numbered(entry, numbers) for entry in every])
    grouped = zip(numbered, groups or [0] * len(every), strict=True)
    parts = {split: [next(grouped) for _ in entries.get(split, ())] for split in PURPOSES}
    fold = None
    if isinstance(fractions, Folds) and fractions.folds is not None:
        if fractions.fold is None:
            raise UserError(f"--data.folds {fractions.folds} needs a run for each fold: name this one's, --data.fold.")
        fold = fractions.fold, fractions.folds
    data = make_splits(
        **parts,
        fold=fold,
        labels=labels,
        classes=lambda sample: None if isinstance(sample[0].target, float) else sample[0].target,
        group=(lambda sample: sample[1]) if groups else None,
        test_fraction=fractions.test_fraction if isinstance(fractions, SplitFractions) else None,
        validation_fraction=fractions.validation_fraction,
    )
    split = data.map(lambda samples: [entry for entry, _ in samples])
    _count_copies(split.train, split.validation, PURPOSES["validation"])
    if data.test is not data.validation:
        _count_copies(split.train, split.test, PURPOSES["test"])
    return split


def check_splits(entries: Entries) -> None:
    """No group and no file may be in two splits, whatever path leads to the file, and no file have two labels."""
    groups: dict[str, tuple[str, Entry]] = {}
    seen: dict[tuple[int, int], tuple[str, Entry]] = {}
    for split in PURPOSES:
        for entry in entries.get(split, ()):
            for file in entry.files:
                before, other = seen.setdefault(_identity(file), (split, entry))
                if ({*_names_of(entry)}, entry.target) != ({*_names_of(other)}, other.target):
                    raise UserError(f"{other} and {entry} are the same file under different labels: leave one.")
                if before != split:
                    purposes = f"once {PURPOSES[before]} and once {PURPOSES[split]}"
                    raise UserError(f"{other} and {entry} are the same file, {purposes}: leave one.")
            if entry.group:
                before, other = groups.setdefault(entry.group, (split, entry))
                if before != split:
                    raise UserError(
                        f"The group {entry.group!r} is torn: {other.where} is {PURPOSES[before]} and {entry.where} is "
                        f"{PURPOSES[split]}; name one split for all rows of a group."
                    )


def _identity(file: Path) -> tuple[int, int]:
    """The same for all paths that lead to the file."""
    status = os.stat(file)
    return status.st_dev, status.st_ino


def _count_copies(train: Sequence[Entry], others: Sequence[Entry], purpose: str) -> None:
    """Only files of one name and size are compared, so that few have to be read."""
    keyed = [
        [((file.name, os.path.getsize(file)), file, entry) for entry in part for file in entry.files]
        for part in (train, others)
    ]
    shared = {key for key, *_ in keyed[0]} & {key for key, *_ in keyed[1]}
    known, read = (
        [(sha256(read_bytes(file)).digest(), entry) for key, file, entry in part if key in shared] for part in keyed
    )
    originals = dict(known)
    if copies := [(originals[content], entry) for content, entry in read if content in originals]:
        example = " and ".join(map(str, copies[0]))
        warnings.warn(
            f"{len(copies)} of {len(keyed[1])} files {purpose} are copies of files that are trained on, such as "
            f"{example}.",
            stacklevel=3,
        )


def _numbered(entry: Entry, numbers: Mapping[str, int]) -> Entry:
    if entry.label is None:
        return entry
    target = numbers[entry.label] if isinstance(entry.label, str) else tuple(numbers[name] for name in entry.label)
    return entry._replace(target=target)


def _names_of(entry: Entry) -> tuple[str, ...]:
    return () if entry.label is None else (entry.label,) if isinstance(entry.label, str) else entry.label


def _names(where: str, label: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(filter(None, map(normal_name, label.split(SEVERAL)))))
    if not names:
        raise UserError(f"{where} has no 'label'.")
    return names


def _files(data: DataSplits[list[Entry]]) -> DataSplits[list[Sample]]:
    return data.map(lambda entries: [Sample(entry.sample, entry.target) for entry in entries])
