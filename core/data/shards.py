"""Shards: large files of many samples each, so that each sample can be read by itself.

A shard is a tar file as WebDataset has it: the files of a sample lie one behind the other and share a name up to their
suffix. An index says where each sample begins (shard_index.py). Or it is a Parquet file (parquet.py). Nothing of a
shard but its place and its labels is read before one of its samples is asked for.
"""

import json
import warnings
from bisect import bisect_right
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ..config import Count, Positive, configclass
from ..errors import UserError
from ..files import Packed, user_cache
from .cache import DecodeCache, open_cache
from .dataset import FileDataset, NamedSamples, SplitFractions, required
from .downloads import Downloads
from .labelled import Sample
from .listed import check_targets
from .manifest import as_text
from .parquet import read_parquet
from .remote import RemoteStore
from .shard_files import ANY, Files, OpenShard, Shard, ShardError, suffix_of
from .shard_index import INDEX, read_index
from .shard_store import ShardStore
from .splits import DataSplits

READABLE = 64  # shards that are kept open


@dataclass(frozen=True)
class ShardLayout:
    """How the training samples lie in shards, which their order follows."""

    sizes: tuple[int, ...]
    """Samples of each shard."""
    window: int
    """Shards within which samples are shuffled."""


class ShardReader:
    """Reads samples; the shards that are in use stay open."""

    def __init__(self, store: ShardStore, suffixes: Collection[str]):
        self.store, self.suffixes = store, frozenset((ANY, *suffixes))
        self._open: dict[str, OpenShard] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": {}}

    def open(self, shard: Shard) -> OpenShard:
        """Raises ShardError if it is not there, or damaged."""
        opened = self._open.pop(shard.url, None)
        if opened is None:
            opened = self.store.open(shard)
            if len(self._open) >= READABLE:
                self._open.pop(next(iter(self._open))).close()
        self._open[shard.url] = opened  # the last one is the one that was used last
        return opened

    def sample(self, shard: Shard, number: int) -> Files:
        try:
            return self.open(shard).sample(shard, number)
        except ShardError as error:
            raise UserError(str(error)) from None


@dataclass(frozen=True, slots=True)
class Packet(Packed):
    """The file of a sample in a shard."""

    reader: ShardReader
    shard: Shard
    number: int

    def read_bytes(self) -> bytes:
        for name, content in self.reader.sample(self.shard, self.number):
            if suffix_of(name) in self.reader.suffixes:
                return content
        kinds = ", ".join(sorted(self.reader.suffixes - {ANY}))
        raise UserError(f"{self} has no file of a kind that is read here ({kinds}).")

    @property
    def identity(self) -> str:
        where = self.reader.store.name(self.shard.url)
        return f"{self.shard.sha256 or where} {self.shard.size} {self.shard.offsets[self.number]}"

    def __str__(self) -> str:
        files = dict(self.reader.sample(self.shard, self.number))
        name = next(iter(files), "")
        for file, content in files.items():
            if suffix_of(file) == ".json":
                with suppress(ValueError, KeyError, TypeError):
                    name = json.loads(content)["path"]
        return f"{self.reader.store.name(self.shard.url)}, sample {self.number} ({name})"


class ShardSamples(Sequence[Sample]):
    """The samples of several shards, one after the other; made when they are asked for.

    skip: samples of a shard that is missing or damaged are replaced by those of the next one.
    """

    def __init__(self, shards: Sequence[Shard], reader: ShardReader, window: int, skip: bool = False):
        self.shards, self.reader, self.window, self.skip = shards, reader, window, skip
        self.ends = [*accumulate(map(len, shards))]
        self.bad: dict[int, str] = {}

    @property
    def layout(self) -> ShardLayout:
        return ShardLayout(tuple(map(len, self.shards)), self.window)

    @property
    def multilabel(self) -> bool:
        """Whether samples have any number of labels."""
        return any(isinstance(shard.labels, list) for shard in self.shards)

    @property
    def predicts_number(self) -> bool:
        """Whether labels are numbers to be predicted."""
        return any(isinstance(shard.labels, np.ndarray) and shard.labels.dtype.kind == "f" for shard in self.shards)

    def __len__(self) -> int:
        return self.ends[-1] if self.ends else 0

    def __getitem__(self, index: int) -> Sample:  # pyright: ignore[reportIncompatibleMethodOverride]
        place, number = self._find(index)
        if self.skip:
            place, number = self._usable(place, number)
        return self._sample(place, number)

    def __iter__(self) -> Iterator[Sample]:
        """All as the index lists them; no shard is opened."""
        return (self._sample(place, number) for place, shard in enumerate(self.shards) for number in range(len(shard)))

    def _sample(self, place: int, number: int) -> Sample:
        shard = self.shards[place]
        return Sample(Packet(self.reader, shard, number), shard.label(number))

    def _find(self, index: int) -> tuple[int, int]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        place = bisect_right(self.ends, index)
        return place, index - (self.ends[place] - len(self.shards[place]))

    def _usable(self, place: int, number: int) -> tuple[int, int]:
        """The sample, or the one in its place if its shard cannot be read: the same in all processes."""
        for other in (*range(place, len(self.shards)), *range(place)):
            if other not in self.bad:
                try:
                    self.reader.open(self.shards[other])
                    return other, number % len(self.shards[other])
                except ShardError as error:
                    self.mark_bad(other, error)
        raise UserError(f"No shard can be read. {self.bad[place]}")

    def mark_bad(self, place: int, error: ShardError) -> None:
        self.bad[place] = str(error)
        warnings.warn(f"{error} Samples of the next shard are trained on instead.", stacklevel=2)


def rows_of(samples: ShardSamples, labels: Sequence[str], label_column: str) -> Iterator[tuple[str, dict[str, str]]]:
    """The columns of each sample as text, with a name of it for messages.

    labels: names of the classes, if the samples have class numbers, which are those of `label_column`.
    """
    for place, shard in enumerate(samples.shards):
        if place in samples.bad:
            continue
        for number in range(len(shard)):
            where = f"{samples.reader.store.name(shard.url)}, sample {number}"
            files = {suffix_of(name): content for name, content in samples.reader.sample(shard, number)}
            try:
                row = json.loads(files[".json"])
                if labels and shard.labels is not None:
                    label: Any = shard.label(number)
                    row[label_column] = labels[label] if label >= 0 else ""  # -1: not labelled
                yield where, {str(name): as_text(value) for name, value in row.items() if not isinstance(value, list)}
            except (KeyError, ValueError, AttributeError, TypeError):
                raise UserError(f"{where} holds no columns of texts: shard a manifest with --columns.") from None


def in_shards(path: Path | str | None) -> bool:
    """Whether data lie in shards: at an address, or in a folder with an index or with Parquet files."""
    place = Path(path or "")
    return "://" in str(path) or place.name == INDEX or (place / INDEX).is_file() or any(place.glob("*.parquet"))


def shards_of(samples: Any) -> ShardLayout | None:
    """How samples lie in shards, if they do."""
    return samples.layout if isinstance(samples, ShardSamples) else None


def some_of(samples: Sequence[Sample], count: int) -> list[Sample]:
    """Evenly spaced samples; of shards, which are shuffled, those of the first one, so that no other is fetched."""
    size = len(samples.shards[0]) if isinstance(samples, ShardSamples) else len(samples)
    count = min(count, size)
    return [samples[place * size // count] for place in range(count)]


@configclass
class ShardSource(SplitFractions):
    """Samples in shards."""

    path: str | Path | None = None
    """The folder of the shards, which holds their index (index.json), or of Parquet files: a path, or an address
    (https, s3, hf and what else fsspec knows)."""
    bad_shards: Literal["refuse", "skip"] = "refuse"
    """What becomes of training shards that are missing or damaged; those of other splits are refused."""
    downloads: Path | None = None
    """Directory that keeps shards of an address; None for one in the user's cache."""
    downloads_size: Positive = 20.0
    """Gigabytes of shards that are kept at most; those go first that were used longest ago."""

    label_column: str = "label"
    """Of Parquet files."""

    def read_shards(
        self, suffixes: Collection[str], window: int = 1, column: str = "", tested: bool = True
    ) -> DataSplits[ShardSamples]:
        """The samples whose files end in one of `suffixes` (lower case, with the dot), or with none of them texts.

        column: of the files in Parquet files. tested: whether a test split is needed.
        """
        store = self.open_store()
        if store.has(INDEX):
            listing = read_index(store, suffixes, tested)
        elif files := store.parquet_files():
            listing = read_parquet(store, files, column, self.label_column, self, texts=not suffixes)
        else:
            raise UserError(
                f"{store.name(INDEX)} is missing: write shards and their index by `python -m core.experiments.shard`."
            )
        reader = ShardReader(store, suffixes)
        parts = {split: ShardSamples(part, reader, window) for split, part in listing.shards.items()}
        parts["train"].skip = self.bad_shards == "skip"
        for samples in parts.values():
            for place, shard in enumerate(samples.shards):
                try:
                    store.check(shard)
                except ShardError as error:
                    if not samples.skip:
                        raise UserError(str(error)) from None
                    samples.mark_bad(place, error)
        return DataSplits(**parts, labels=listing.labels, note=listing.note)

    def open_store(self) -> ShardStore:
        source = required(self.path, getattr(self, "name", "chosen"))
        kept = user_cache("shards") if self.downloads is None else self.downloads
        downloads = Downloads(kept, int(self.downloads_size * 1e9))
        if "://" in str(source):
            return RemoteStore(str(source).removesuffix(INDEX), downloads)
        path = Path(source)
        folder = path.parent if path.name == INDEX else path
        if not folder.is_dir():
            raise UserError(f"There is no folder {folder}: --data.path names one of shards.")
        return ShardStore(folder, downloads)


@configclass
class ShardFiles(ShardSource, FileDataset):
    """Files in shards."""

    window: Count = 4
    """Training samples are shuffled by shard, and within so many shards."""
    column: str = ""
    """Of Parquet files: the column of the files; by default the only one of bytes."""

    def read_files(self, suffixes: Collection[str]) -> DataSplits[ShardSamples]:
        found = self.read_shards(suffixes, self.window, self.column)
        check_targets(self, found.train.multilabel, found.train.predicts_number)
        return found

    def open_cache(self) -> DecodeCache | None:
        return open_cache(self.cache, None)

    def named_samples(self, data: DataSplits) -> NamedSamples:
        """The shards of each split, and a checksum of each."""
        return {
            split: [
                (shard.url, shard.sha256 or f"{len(shard)} rows, {shard.size} bytes") for shard in part.samples.shards
            ]
            for split, part in data.parts().items()
        }
