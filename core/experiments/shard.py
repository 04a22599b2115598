"""Write data into shards: `python -m core.experiments.shard SOURCE SHARDS`."""

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Annotated, Literal

import tyro

from ..config import Count, configclass
from ..data.dataset import SplitFractions
from ..data.labelled import Entry, read_files, read_folder, read_manifest
from ..data.manifest import Row
from ..data.shard_writer import ToPack, files_to_pack, write_shards
from ..data.splits import DataSplits
from ..data.targets import number_of
from ..errors import UserError
from .cli import predict_command


@configclass
class Arguments(SplitFractions):
    """Write a folder or a manifest into shards, for `--data.path` of the experiment `shards`.

    Splits that are missing are cut as in training from the folder or the manifest itself.
    """

    source: Annotated[Path, tyro.conf.Positional]
    """The folder with a directory for each class, or the manifest."""
    shards: Annotated[Path, tyro.conf.Positional]
    """The new directory."""
    samples: Count = 1000
    """Of each shard."""
    suffixes: tuple[str, ...] = ()
    """Suffixes of the files of a folder that are samples (.png .jpg); all files by default."""
    multilabel: bool = False
    """Labels of a manifest are separated by semicolons or a list of JSON: a sample may be of several classes."""
    group: str = ""
    """Column of the manifest whose equal values are never in two splits; `group` by default, if there."""
    columns: tuple[str, ...] = ()
    """Columns of a manifest of texts: text, or the two of pairs."""
    target: Literal["classes", "number", "none"] = "classes"
    """What the labels of a manifest are; none: texts have none, or they are not needed."""
    encoding: str = "utf-8"
    """Of a manifest of texts, as Python names it."""


class AnySuffix(Collection[str]):
    def __contains__(self, suffix: object) -> bool:
        return True

    def __iter__(self) -> Iterator[str]:
        return iter(("any",))

    def __len__(self) -> int:
        return 1


def shard(arguments: Arguments) -> None:
    entries = write_shards(arguments.shards, _read(arguments), arguments.samples)
    samples = sum(entry["nsamples"] for entry in entries)
    print(f"{samples:,} samples in {len(entries):,} shards: --data.path {arguments.shards}")


def _read(arguments: Arguments) -> DataSplits[list[ToPack]]:
    source = arguments.source
    if source.is_dir():
        if arguments.columns:
            raise UserError(f"--columns are those of a manifest, and {source} is a folder: leave them out.")
        suffixes = [f".{suffix.lower().removeprefix('.')}" for suffix in arguments.suffixes]
        return files_to_pack(read_folder(source, suffixes or AnySuffix(), arguments), source)
    if arguments.columns:
        return _texts(arguments)
    if arguments.target == "none":
        raise UserError("--target none is for texts: files are listed with labels.")
    kind = "number" if arguments.target == "number" else "classes" if arguments.multilabel else "class"
    return files_to_pack(read_files(source, arguments, kind, group=arguments.group), source.parent)


def _texts(arguments: Arguments) -> DataSplits[list[ToPack]]:
    """The rows of a manifest of texts."""
    columns = [name.strip().casefold() for name in arguments.columns]
    labelled = arguments.target != "none"

    def entry(where: str, row: Row) -> Entry:
        kept = {name: row[name] for name in (*columns, *(("label",) if labelled else ()))}
        if arguments.target == "classes":
            return Entry(where, kept, row["label"])
        if arguments.target == "none":
            return Entry(where, kept)
        return Entry(where, kept, target=number_of(where, row["label"]))

    required = [*columns, "label"] if labelled else columns
    options = {"required": required, "prose": columns, "encoding": arguments.encoding, "group": arguments.group}
    data = read_manifest(arguments.source, entry, arguments, **options)
    classes = arguments.target == "classes"
    return data.map(lambda part: [ToPack(entry.sample, entry.target if classes else None) for entry in part])


if __name__ == "__main__":
    predict_command("python -m core.experiments.shard", Arguments, shard)
