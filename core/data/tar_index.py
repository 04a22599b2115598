"""The index of shards that others wrote as WebDataset has them: each tar file is read through once."""

import json
import tarfile
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..files import first_line, write_json
from .dataset import SplitFractions
from .manifest import as_text, normal_name
from .shard_files import checksum, suffix_of
from .shard_index import BESIDE, INDEX, KIND, Index, ShardEntry, split_of


def write_index(folder: Path, tars: list[Path], fractions: SplitFractions, labelled: bool) -> list[ShardEntry]:
    """index.json in `folder`. Splits are named as those of Parquet files are; of those that are missing whole shards
    are held out.

    labelled: a sample's class is in its .cls, or as `label` or `class` in its .json.
    """
    suffixes: set[str] = set()
    names: list[list[str]] = []
    entries: list[ShardEntry] = []
    for path in tars:
        offsets, labels = _scan(path, suffixes, labelled)
        names.append(labels)
        url = path.relative_to(folder).as_posix()
        entry: Any = {"url": url, "nsamples": len(labels), "filesize": path.stat().st_size, "sha256": checksum(path)}
        entry |= {"split": split_of(url), "offsets": offsets, "labels": []}
        entries.append(entry)
    classes = sorted({name for each in names for name in each}, key=_natural) if labelled else []
    if labelled and len(classes) < 2:
        raise UserError(f"The shards in {folder} have {len(classes)} classes: at least two are needed.")
    numbers = {name: number for number, name in enumerate(classes)}
    if labelled:
        for entry, each in zip(entries, names, strict=True):
            entry["labels"] = [numbers[name] for name in each]
    note = _hold_out(folder, entries, fractions)
    index: Index = {
        "__kind__": KIND,
        "wids_version": 1,
        "classes": classes,
        "suffixes": sorted(suffixes),
        "note": note,
        "shardlist": entries,
    }
    write_json(folder / INDEX, index, None)
    return entries


def _natural(name: str) -> tuple[int, str]:
    """Class numbers in their order, and other names after them by the alphabet."""
    return (int(name), "") if name.isdecimal() else (2**63, name)


def _scan(path: Path, suffixes: set[str], labelled: bool) -> tuple[list[int], list[str]]:
    """Where each sample begins, and the end of the last one; and the name of the class of each."""
    offsets, labels, end = [], [], 0
    try:
        with tarfile.open(path, "r:") as tar:
            for name, members in groupby(_files(tar), key=lambda member: _sample_name(member.name)):
                kept = [*members]
                offsets.append(kept[0].offset)
                end = kept[-1].offset_data + -(-kept[-1].size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
                kinds = {suffix_of(member.name): member for member in kept}
                suffixes.update([*(kind for kind in kinds if kind not in BESIDE)][:1] or [".json"])
                labels.append(_label(tar, kinds, f"{path}, sample {name}") if labelled else "")
    except (tarfile.TarError, OSError) as error:
        raise UserError(f"{path} is no tar file, or damaged: {first_line(error)}.") from None
    if not labels:
        raise UserError(f"{path} holds no samples: remove it.")
    if end + tarfile.BLOCKSIZE > path.stat().st_size:  # a block of zeros is the end
        raise UserError(f"{path} is cut off: fetch it again.")
    return [*offsets, end], labels


def _files(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    return (member for member in tar if member.isfile())


def _sample_name(name: str) -> str:
    """What the files of a sample share: their path up to the first dot of the last part."""
    folder, slash, last = name.rpartition("/")
    return folder + slash + last.partition(".")[0]


def _label(tar: tarfile.TarFile, kinds: dict[str, tarfile.TarInfo], where: str) -> str:
    value: Any = None
    try:
        if ".json" in kinds:
            facts = json.loads(_content(tar, kinds[".json"]))
            value = facts.get("label", facts.get("class"))
        if value is None and ".cls" in kinds:
            value = _content(tar, kinds[".cls"]).decode()
        label = normal_name(as_text(value))
    except (ValueError, AttributeError, TypeError) as error:
        raise UserError(f"{where}: its class cannot be read: {first_line(error)}.") from None
    if not label:
        raise UserError(f"{where} has no class in a .cls, or as label in a .json: add it, or give --target none.")
    return label


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(member)
    return b"" if file is None else file.read()


def _hold_out(folder: Path, entries: list[ShardEntry], fractions: SplitFractions) -> str:
    """Name the splits that are missing in `entries`; a sentence that says which these are."""
    notes = []
    for split, fraction in (("test", fractions.test_fraction), ("validation", fractions.validation_fraction)):
        if any(entry["split"] == split for entry in entries):
            continue
        train: list[Any] = [entry for entry in entries if entry["split"] == "train"]
        count = max(round(fraction * len(train)), 1)
        if len(train) <= count:
            raise UserError(f"{folder} has too few shards to hold some out: name some {split}-..., or split them.")
        for number in range(count):  # evenly spaced
            train[(2 * number + 1) * len(train) // (2 * count)]["split"] = split
        purpose = "testing" if split == "test" else split
        notes.append(f"{count} of {len(train)} training shards were held out for {purpose}")
    if not any(entry["split"] == "train" for entry in entries):
        raise UserError(f"{folder} holds no shards to train on: their names begin with train.")
    return f"{', and '.join(notes)}." if notes else "The validation and the test split are the data's own."
