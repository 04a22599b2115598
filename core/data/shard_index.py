"""The index of shards, index.json: which there are, and where each sample of them begins."""

import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Literal, NotRequired

import numpy as np
from typing_extensions import TypedDict

from ..errors import UserError
from ..files import parse_json
from .labelled import PURPOSES
from .manifest import SPLITS
from .shard_files import Shard
from .shard_store import ShardStore

INDEX = "index.json"
KIND = "wids-shard-index-v1"
BESIDE = (".json", ".cls")  # what WebDataset puts beside a sample's file: its class and other particulars


class ShardEntry(TypedDict):
    """A shard in the index."""

    url: str
    """From the folder of the index."""
    nsamples: int
    filesize: int
    sha256: str
    split: Literal["train", "validation", "test"]
    offsets: list[int]
    """Where each sample begins, and the end of the last one."""
    labels: list[int] | list[list[int]] | list[float]
    """Of each sample: class number, the numbers of several classes, or a number to predict; none without labels."""


class Index(TypedDict):
    __kind__: Literal["wids-shard-index-v1"]
    wids_version: int
    classes: list[str]
    """Names of the classes."""
    suffixes: list[str]
    """Of the files, in lower case with the dot."""
    note: NotRequired[str]
    """Says where the splits come from."""
    shardlist: list[ShardEntry]


@dataclass(frozen=True)
class Listing:
    """What is known of shards before any sample is read."""

    shards: dict[str, list[Shard]]
    """Of each split."""
    labels: tuple[str, ...]
    note: str


def split_of(url: str) -> Any:
    """What the first word of a file's name says, or of its folder's."""
    path = PurePosixPath(url)
    for name in (path.stem, *(folder.name for folder in path.parents)):
        if split := SPLITS.get(re.split("[^a-z]", name.casefold())[0]):
            return split
    return "train"


def read_index(store: ShardStore, suffixes: Collection[str], tested: bool = True) -> Listing:
    """suffixes: of the files that can be read. tested: whether a test split is needed."""
    index: Index = parse_json(store.read(INDEX), store.name(INDEX), Index)
    for entry in index["shardlist"]:
        if not _consistent(entry, len(index["classes"])):
            raise UserError(f"{store.name(INDEX)}: what it says of {entry['url']} contradicts itself: make it again.")
    if unknown := sorted({*index["suffixes"]} - {*suffixes, *BESIDE}):
        raise UserError(f"{store.name(INDEX)}: the shards hold {unknown[0]} files, which are not read here.")
    listed = {split: [entry for entry in index["shardlist"] if entry["split"] == split] for split in PURPOSES}
    if absent := next((s for s in PURPOSES if not listed[s] and (tested or s != "test")), None):
        raise UserError(f"{store.name(INDEX)} lists no shards {PURPOSES[absent]}: make them again.")
    count = len(index["classes"])
    shards = {split: [_shard(entry, count) for entry in entries] for split, entries in listed.items()}
    return Listing(shards, tuple(index["classes"]), index.get("note", ""))


def _consistent(entry: ShardEntry, classes: int) -> bool:
    offsets, count = np.asarray(entry["offsets"], np.int64), entry["nsamples"]
    if len(offsets) != count + 1 or count < 1 or len(entry["labels"]) not in (0, count):
        return False
    if offsets[0] < 0 or offsets[-1] > entry["filesize"] or (np.diff(offsets) <= 0).any():
        return False
    if not classes:
        return True
    numbers: Any = entry["labels"]
    numbers = np.asarray([number for each in numbers for number in each] if _several(entry) else numbers)
    return numbers.dtype.kind == "i" and bool(((numbers >= 0) & (numbers < classes)).all())


def _several(entry: ShardEntry) -> bool:
    return bool(entry["labels"]) and isinstance(entry["labels"][0], list)


def _shard(entry: ShardEntry, classes: int) -> Shard:
    labels: Any = entry["labels"] or None
    if _several(entry):
        labels = [tuple(each) for each in labels]
    elif labels is not None:
        labels = np.asarray(labels, np.int32 if classes else np.float64)
    return Shard(entry["url"], entry["filesize"], entry["sha256"], np.asarray(entry["offsets"], np.int64), labels)
