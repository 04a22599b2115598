"""Write data into shards: `python -m core.experiments.shard SOURCE SHARDS`."""

from collections.abc import Collection, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

import tyro

from ..config import Count, configclass
from ..data.dataset import SplitFractions
from ..data.labelled import Entry, read_files, read_folder, read_manifest
from ..data.manifest import Row
from ..data.shard_writer import ToPack, files_to_pack, unlabelled_to_pack, write_shards
from ..data.splits import DataSplits
from ..data.tar_index import write_index
from ..data.targets import number_of
from ..data.unlabelled import UnlabelledFiles
from ..errors import UserError
from .cli import predict_command


@configclass
class Arguments(SplitFractions):
    """Write a folder or a manifest into shards, for `--data.path` of the experiment `shards`; or the index of tar files
    that are there.

    Splits that are missing are cut as in training from the folder or the manifest itself; of tar files whole ones are
    held out.
    """

    source: Annotated[Path, tyro.conf.Positional]
    """The folder with a directory for each class, or the manifest; or the folder of tar files as WebDataset has them,
    with the class of each sample in a .cls, or as label in a .json."""
    shards: Annotated[Path | None, tyro.conf.Positional] = None
    """The new directory; the index of tar files is written beside them."""
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
    """What the labels of a manifest are; none: samples have none, or need none. Files may then lie anywhere below the
    folder, and no test split is written."""
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
    source, shards = arguments.source, arguments.shards
    tars = sorted(source.rglob("*.tar")) if source.is_dir() else []
    if tars:
        if shards is not None and shards.resolve() != source.resolve():
            raise UserError(f"{source} holds tar files, whose index is written beside them: leave out {shards}.")
        shards, entries = source, write_index(source, tars, arguments, labelled=arguments.target != "none")
    elif shards is None:
        raise UserError(f"Name the new directory of the shards after {source}.")
    else:
        entries = write_shards(shards, _read(arguments), arguments.samples)
    samples = sum(entry["nsamples"] for entry in entries)
    print(f"{samples:,} samples in {len(entries):,} shards: --data.path {shards}")


def _read(arguments: Arguments) -> DataSplits[list[ToPack]]:
    source = arguments.source
    suffixes = [f".{suffix.lower().removeprefix('.')}" for suffix in arguments.suffixes] or AnySuffix()
    if source.is_dir() and arguments.columns:
        raise UserError(f"--columns are those of a manifest, and {source} is a folder: leave them out.")
    if arguments.columns and arguments.multilabel:
        raise UserError("--multilabel is for files, and --columns for texts: leave one of the two out.")
    if arguments.columns:
        return _texts(arguments)
    if arguments.target == "none":
        options = {"group": arguments.group, "validation_fraction": arguments.validation_fraction}
        data = UnlabelledFiles(path=source, **options).files(suffixes)
        return unlabelled_to_pack(replace(data, test=[]), source if source.is_dir() else source.parent)
    if source.is_dir():
        return files_to_pack(read_folder(source, suffixes, arguments), source)
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
