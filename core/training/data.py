"""Labelled files on disk, whatever is in them: a directory per class, or a manifest. And the split into train and test.

`folder`: root/<class>/<file>, split here, or root/train/<class>/<file> and root/test/<class>/<file>.
`manifest`: a CSV (with a header) or JSONL file with the columns `path` (relative to the manifest), `label`, and
optionally `split` (`train` or `test`).
"""

import csv
import io
import json
import math
import random
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NamedTuple

from ..errors import UserError


class Sample(NamedTuple):
    path: Path
    label: int


class Samples(NamedTuple):
    train: list[Sample]
    test: list[Sample]
    labels: tuple[str, ...]


def read_folder(root: Path, suffixes: Collection[str], test_fraction: float) -> Samples:
    """Files whose name ends in one of `suffixes` (lower case, with the dot), one directory per class."""
    if not root.is_dir():
        raise UserError(f"{root} is not a directory: --data.path names the folder that holds a directory per class.")
    halves = [root / "train", root / "test"]
    if all(half.is_dir() for half in halves):
        train, test = (_class_files(half, suffixes) for half in halves)
        if unknown := sorted(set(test) - set(train)):
            raise UserError(
                f"{halves[1]}: class {unknown[0]!r} has no directory in {halves[0]}, so it can't be learnt."
            )
        labels = tuple(sorted(train))
        _check_labels(labels, root)
        return Samples(*([Sample(f, labels.index(c)) for c in part for f in part[c]] for part in (train, test)), labels)
    files = _class_files(root, suffixes)
    labels = tuple(sorted(files))
    _check_labels(labels, root)
    samples = [Sample(file, number) for number, label in enumerate(labels) for file in files[label]]
    return Samples(*split_samples(samples, labels, test_fraction), labels)


def read_manifest(path: Path, test_fraction: float) -> Samples:
    rows = manifest_rows(path, required=("path", "label"))
    labels = tuple(sorted({row["label"] for row in rows.values()}))
    _check_labels(labels, path)
    parts: dict[str, list[Sample]] = {"train": [], "test": []}
    for where, row in rows.items():
        file = path.parent / row["path"]
        if not file.is_file():
            raise UserError(f"{where}: there is no file {file}.")
        split = row.get("split") or "train"
        if split not in parts:
            raise UserError(f"{where}: split is {split!r}, but must be 'train' or 'test'.")
        parts[split].append(Sample(file, labels.index(row["label"])))
    if not parts["test"]:
        return Samples(*split_samples(parts["train"], labels, test_fraction), labels)
    if unlearnt := {s.label for s in parts["test"]} - {s.label for s in parts["train"]}:
        raise UserError(f"{path}: label {labels[min(unlearnt)]!r} is only in the test split, so it can't be learnt.")
    return Samples(parts["train"], parts["test"], labels)


def manifest_rows(path: Path, required: Sequence[str], encoding: str = "utf-8") -> dict[str, dict[str, str]]:
    """The rows of a CSV or JSONL manifest by where they stand ("file, row 3"); each has the required fields."""
    if not path.is_file():
        raise UserError(f"There is no manifest {path}: --data.path names a .csv or .jsonl file.")
    text = read_text(path, encoding)
    rows = {}
    if path.suffix == ".jsonl":
        for number, line in enumerate(text.split("\n"), 1):  # JSON may hold other line breaks, such as U+2028
            where = f"{path}, row {number}"
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise UserError(f"{where} is not JSON: {error}.") from None
            if not isinstance(row, dict):
                raise UserError(f"{where} is not a JSON object.")
            row = {key: value for key, value in row.items() if value is not None}
            rows[where] = {key: value if isinstance(value, str) else str(value) for key, value in row.items()}
    elif path.suffix == ".csv":
        reader = csv.DictReader(io.StringIO(text, newline=""), skipinitialspace=True)
        if absent := [name for name in required if name not in (reader.fieldnames or ())]:
            found = ", ".join(reader.fieldnames or ()) or "none"
            raise UserError(f"{path} has no column {absent[0]!r}; its columns are: {found}.")
        try:
            rows = {f"{path}, row {number}": row for number, row in enumerate(reader, 1)}
        except csv.Error as error:
            raise UserError(f"{path}, line {reader.line_num} is not CSV: {error}.") from None
    else:
        raise UserError(f"{path}: a manifest is a .csv or .jsonl file.")
    if not rows:
        raise UserError(f"{path} has no rows.")
    for where, row in rows.items():
        if None in row:  # where csv puts what is left over
            raise UserError(f"{where} has more fields than the header: put quotes around one that holds commas.")
        if empty := [name for name in required if not row.get(name)]:
            raise UserError(f"{where} has no {empty[0]!r}.")
    return rows


def read_text(path: Path, encoding: str) -> str:
    """A whole text file."""
    try:
        return path.read_bytes().decode(encoding).removeprefix("\ufeff").replace("\r\n", "\n")
    except LookupError:
        raise UserError(f"{encoding!r} is not an encoding that Python knows.") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not {encoding} text (byte {error.start}): name the encoding it is in.") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from None


def split_samples(
    samples: list[Sample], labels: Sequence[str], test_fraction: float
) -> tuple[list[Sample], list[Sample]]:
    """Train and test, each class in the same share, the same for every seed."""
    counts = Counter(sample.label for sample in samples)
    label, fewest = min(counts.items(), key=lambda item: item[1])
    if fewest < 2:
        raise UserError(f"Class {labels[label]!r} has a single file: it needs two, one to train on and one to test.")
    train, test = stratified_split([sample.label for sample in samples], test_fraction)
    return [samples[i] for i in train], [samples[i] for i in test]


def stratified_split(labels: Sequence[int], test_fraction: float) -> tuple[list[int], list[int]]:
    """Indices of train and test; fixed, so that runs with different seeds are tested on the same samples."""
    from sklearn.model_selection import train_test_split

    if not 0 < test_fraction < 1:
        raise UserError(f"--data.test-fraction must be between 0 and 1, not {test_fraction}.")
    classes = len(set(labels))
    size = min(max(math.ceil(test_fraction * len(labels)), classes), len(labels) - classes)
    train, test = train_test_split(range(len(labels)), test_size=size, random_state=0, stratify=labels)
    return sorted(train), sorted(test)


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


def _class_files(root: Path, suffixes: Collection[str]) -> dict[str, list[Path]]:
    files = {}
    for folder in sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")):
        files[folder.name] = sorted(f for f in folder.rglob("*") if f.suffix.lower() in suffixes)
        if not files[folder.name]:
            kinds = ", ".join(sorted(suffixes))
            raise UserError(f"{folder} is a class without files: add some ({kinds}) or remove the directory.")
    return files


def _check_labels(labels: Sequence[str], where: Path) -> None:
    if len(labels) < 2:
        raise UserError(f"{where} has {len(labels)} class{'' if len(labels) == 1 else 'es'}: at least two are needed.")
