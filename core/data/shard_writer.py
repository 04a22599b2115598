"""Writes samples into shards: tar files as WebDataset has them, and the index of `shards.py`."""

import io
import json
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..errors import UserError
from ..files import printable, read_bytes, replacing_folder, write_json
from .shard_files import checksum, suffix_of
from .shard_index import INDEX, KIND, Index, ShardEntry
from .splits import DataSplits
from .targets import Label


class ToPack(NamedTuple):
    """A sample to be written."""

    facts: dict[str, Any]
    """What stands beside the file: its `path` and `label`, or the columns of a text."""
    label: Label | None
    """None without labels."""
    file: Path | None = None


def write_shards(folder: Path, data: DataSplits[list[ToPack]], size: int) -> list[ShardEntry]:
    """Shards of `size` samples (those of the end have fewer), and their index, in a new folder.

    Training samples are shuffled, always in the same way, so that each shard is a random sample of them.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} is not empty: name a new directory for the shards.")
    suffixes, entries = {".json"}, []
    with replacing_folder(folder) as partial:
        for split, samples in data.parts().items():
            if split == "train":
                samples = [samples[place] for place in np.random.default_rng(0).permutation(len(samples))]
            for first in range(0, len(samples), size):
                url = f"{split}-{first // size:06d}.tar"
                with (partial / url).open("wb") as file:
                    packed = samples[first : first + size]
                    offsets = [*_pack(file, packed, first, suffixes)]
                entries.append(_entry(partial / url, split, offsets, [sample.label for sample in packed]))
        index: Index = {
            "__kind__": KIND,
            "wids_version": 1,
            "classes": [*data.labels],
            "suffixes": sorted(suffixes),
            "note": data.note,
            "shardlist": entries,
        }
        write_json(partial / INDEX, index, None)
    return entries


def _pack(file: Any, samples: Sequence[ToPack], first: int, suffixes: set[str]) -> Iterator[int]:
    """Where each sample begins, and where the last one ends. first: number of the first sample."""
    with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for number, sample in enumerate(samples, first):
            yield file.tell()
            if sample.file is not None:
                suffix = suffix_of(f"0{sample.file.suffix}")
                suffixes.add(suffix)
                _add(tar, f"{number:09d}{suffix}", read_bytes(sample.file))
            _add(tar, f"{number:09d}.json", json.dumps(sample.facts).encode())
        yield file.tell()


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size, member.mode = len(content), 0o644
    tar.addfile(member, io.BytesIO(content))


def _entry(path: Path, split: Any, offsets: list[int], labels: Sequence[Label | None]) -> ShardEntry:
    known: Any = [[*each] if isinstance(each, tuple) else each for each in labels if each is not None]
    return {
        "url": path.name,
        "nsamples": len(labels),
        "filesize": path.stat().st_size,
        "sha256": checksum(path),
        "split": split,
        "offsets": offsets,
        "labels": known,
    }


def unlabelled_to_pack(data: DataSplits, root: Path) -> DataSplits[list[ToPack]]:
    """As `files_to_pack`, without labels."""
    return data.map(lambda samples: [ToPack({"path": _name(file, root)}, None, file) for file, _ in samples])


def files_to_pack(data: DataSplits, root: Path) -> DataSplits[list[ToPack]]:
    """data: samples of files. root: the folder that their names begin in."""

    def packed(file: Path, label: Label) -> ToPack:
        facts: dict[str, Any] = {"path": _name(file, root), "label": label}
        if isinstance(label, int):
            facts |= {"label": data.labels[label], "class": label}
        elif isinstance(label, tuple):
            facts |= {"label": [data.labels[number] for number in label], "class": label}
        return ToPack(facts, label, file)

    return data.map(lambda samples: [packed(file, label) for file, label in samples])


def _name(file: Path, root: Path) -> str:
    return printable(file.relative_to(root).as_posix() if file.is_relative_to(root) else str(file))
