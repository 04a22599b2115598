"""Parquet files as shards, in the form of Hugging Face's `datasets`: a column of files or texts, and one of labels."""

import json
from itertools import accumulate
from typing import Any

import numpy as np
from jaxtyping import Int32, Int64

from ..errors import UserError
from ..files import first_line
from .arrow_files import arrow, holds_bytes
from .dataset import SplitFractions
from .labelled import PURPOSES
from .manifest import as_text, normal_name
from .shard_files import Shard
from .shard_index import Listing, split_of
from .shard_store import ShardStore
from .splits import make_splits


def read_parquet(
    store: ShardStore, urls: list[str], column: str, label_column: str, fractions: SplitFractions, texts: bool
) -> Listing:
    """The files' footers and their labels. A file's split is the first word of its name, or its folder's; splits that
    are missing are cut from the rows to train on.

    column: of the files; empty for the only one of bytes. texts: there is no such column.
    """
    shards: dict[str, list[Shard]] = {split: [] for split in PURPOSES}
    values: dict[str, Any] = {}
    names: list[str] | None = None
    for url in urls:
        with store.file(url) as file:
            shard, labels, own = _described(store.name(url), url, file, column, label_column, texts)
        if names is not None and own is not None and own != names:
            raise UserError(f"{store.name(url)} has other classes than the files before it.")
        names, values[url] = names or own, labels
        shards[split_of(url)].append(shard)
    if not shards["train"]:
        raise UserError(f"{store.name('')} holds no Parquet files to train on: their names begin with train.")
    if texts and names is None:  # what is learnt of them is decided later
        return Listing(shards, (), "")
    labels, classes = _numbered(values, names, store)
    shards = {split: [_chosen(shard, classes[shard.url]) for shard in part] for split, part in shards.items()}
    if texts:
        return Listing(shards, labels, "")
    if len(labels) < 2:
        raise UserError(f"{store.name('')} has {len(labels)} classes in the column {label_column!r}: two are needed.")
    return _cut(shards, labels, fractions)


def _described(
    name: str, url: str, file: Any, column: str, label_column: str, texts: bool
) -> tuple[Shard, list, list[str] | None]:
    """A shard of all rows, their labels as they are, and the names of the classes if the file has them."""
    pyarrow = arrow()
    try:
        parquet = pyarrow.parquet.ParquetFile(file)
        schema, count = parquet.schema_arrow, parquet.metadata.num_rows
        held = [field.name for field in schema if holds_bytes(field.type)]
        labels, names = [], None
        if label_column in schema.names:
            labels = parquet.read(columns=[label_column]).column(0).to_pylist()
            names = _class_names(schema, label_column)
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{name} is no Parquet file, or damaged: {first_line(error)}.") from None
    if not count:
        raise UserError(f"{name} has no rows: remove it.")
    if not texts:
        if column not in held and (column or len(held) != 1):
            raise UserError(
                f"{name} has {'no column of files' if not held else 'the columns of files ' + ', '.join(held)}: name "
                f"one by --data.column; its columns are: {', '.join(schema.names)}."
            )
        if not labels or any(value is None or value == -1 for value in labels):
            raise UserError(f"{name} has rows without a label in the column {label_column!r} (--data.label-column).")
        column = column or held[0]
    size = file.seek(0, 2)
    return Shard(url, size, "", np.arange(count + 1), None, column), labels, names


def _class_names(schema: Any, column: str) -> list[str] | None:
    """What `datasets` says of its classes."""
    try:
        return json.loads(schema.metadata[b"huggingface"])["info"]["features"][column]["names"]
    except (TypeError, KeyError, ValueError):
        return None


def _numbered(
    values: dict[str, list], names: list[str] | None, store: ShardStore
) -> tuple[tuple[str, ...], dict[str, Int32[np.ndarray, "_"]]]:
    """The names of the classes, and the class numbers of each file's rows."""
    if names is not None:
        numbered = {url: np.array([-1 if n is None else n for n in each], np.int32) for url, each in values.items()}
        if wrong := next((url for url, each in numbered.items() if each.max(initial=0) >= len(names)), None):
            raise UserError(f"{store.name(wrong)} has labels beyond its {len(names)} classes.")
        return tuple(names), numbered
    try:
        texts = {url: [normal_name(as_text(value)) for value in each] for url, each in values.items()}
    except TypeError as error:
        raise UserError(f"{store.name('')}: a label is {error}, but must be text or a number.") from None
    names = sorted({text for each in texts.values() for text in each})
    numbers = {name: number for number, name in enumerate(names)}
    return tuple(names), {url: np.array([numbers[text] for text in each], np.int32) for url, each in texts.items()}


def _chosen(shard: Shard, classes: Int32[np.ndarray, "n"], rows: Int64[np.ndarray, "m"] | None = None) -> Shard:
    """The shard with some of its rows alone, and their classes."""
    rows = np.arange(len(shard)) if rows is None else rows
    end = [len(shard)] if not len(rows) else [int(rows[-1]) + 1]
    return Shard(shard.url, shard.size, "", np.array([*rows, *end], np.int64), classes[rows], shard.column)


def _cut(shards: dict[str, list[Shard]], labels: tuple[str, ...], fractions: SplitFractions) -> Listing:
    """Splits that are missing are cut from the rows to train on."""
    train = shards["train"]
    known = {number for shard in train for number in np.unique(np.asarray(shard.labels)).tolist()}
    for split in ("validation", "test"):
        for shard in shards[split]:
            if unknown := {*np.asarray(shard.labels).tolist()} - known:
                label = labels[min(unknown)]
                raise UserError(f"{shard.url}: label {label!r} is only in the {split} split, so it can't be learnt.")
    starts = [0, *accumulate(map(len, train))]
    every = np.concatenate([np.asarray(shard.labels) for shard in train]).tolist()
    own = [(-1, 0)]  # in place of the rows of a split that the data have, which are not cut
    found = make_splits(
        [*enumerate(every)],
        own if shards["validation"] else [],
        own if shards["test"] else [],
        labels=labels,
        classes=lambda sample: sample[1],
        test_fraction=fractions.test_fraction,
        validation_fraction=fractions.validation_fraction,
    )
    cut: dict[str, list[Shard]] = {}
    for split, part in found.parts().items():
        if split != "train" and shards[split]:
            cut[split] = shards[split]
            continue
        chosen = np.sort(np.array([index for index, _ in part], np.int64))
        cut[split] = []
        for shard, start in zip(train, starts, strict=False):
            rows = chosen[(chosen >= start) & (chosen < start + len(shard))] - start
            if len(rows):
                cut[split].append(_chosen(shard, np.asarray(shard.labels), rows))
    return Listing(cut, labels, found.note)
