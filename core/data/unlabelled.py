"""Files of which no labels are needed, from a folder, a manifest or shards: to learn from by themselves."""

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

from ..config import configclass
from ..errors import UserError
from .cache import DecodeCache, open_cache
from .dataset import FileDataset, Name, NamedSamples, required
from .folders import find_unlabelled
from .labelled import Entry, Sample, check_splits, manifest_entries, split_entries
from .manifest import Row, listed_file
from .shards import ShardFiles, in_shards
from .splits import DataSplits


@configclass
class UnlabelledFiles(ShardFiles):
    """Files at or below a folder, listed in a CSV or JSON Lines file with `path`, or in shards; labels do no harm."""

    path: str | Path | None = None
    """The folder, the manifest, or shards: their folder, or an address (https, s3, hf and what else fsspec knows)."""
    per_class: Name[None] = None
    test_fraction: Name[None] = None  # pyright: ignore[reportIncompatibleVariableOverride]
    group: str = ""
    """Column of the manifest whose equal values are never in two splits; `group` by default, if there."""

    def given_path(self) -> Path:
        return Path(required(self.path, getattr(self, "name", "chosen")))

    def open_cache(self) -> DecodeCache | None:
        return open_cache(self.cache, None if in_shards(self.path) else self.given_path())

    def unlabelled(self, suffixes: Collection[str]) -> DataSplits:
        """The files whose name ends in one of `suffixes` (lower case, with the dot), with 0 for the class. Those of a
        test split are left alone: the validation split serves as the test split, too."""
        if not in_shards(self.path):
            return self.files(suffixes)
        found = self.read_shards(suffixes, self.window, self.column, tested=False)
        for samples in found.parts().values():
            samples.shards = [replace(shard, labels=None) for shard in samples.shards]
        own = {shard.url for shard in found.test.shards} - {shard.url for shard in found.validation.shards}
        note = found.note + _unused(len(found.test) if own else 0)
        return replace(found, test=found.validation, labels=(), note=note)

    def files(self, suffixes: Collection[str]) -> DataSplits[list[Sample]]:
        """As `unlabelled`, of a folder or a manifest."""
        path = self.given_path()
        entries = self._entries(path, suffixes)
        check_splits(entries)
        test, kept = entries.get("test", []), {split: part for split, part in entries.items() if split != "test"}
        count = len(kept["train"])
        if count == 0 or (count == 1 and not kept.get("validation")):
            kinds = ", ".join(sorted(suffixes))
            raise UserError(
                f"{path} has {'one file' if count else 'no files'} to train on ({kinds}): at least two are needed, one "
                "of them to validate on."
            )
        data = split_entries(path, kept, self).map(lambda part: [Sample(entry.sample, 0) for entry in part])
        return replace(data, note=data.note + _unused(len(test)))

    def _entries(self, path: Path, suffixes: Collection[str]) -> dict[str, list[Entry]]:
        if path.is_dir():
            found = find_unlabelled(path, suffixes)
            return {split: [Entry(str(file), file, files=(file,)) for file in files] for split, files in found.items()}
        if not path.exists():
            raise UserError(f"There is no {path}: --data.path names a folder of files, or a manifest that lists them.")

        def entry(where: str, row: Row) -> Entry:
            file = listed_file(path.parent, where, row["path"])
            return Entry(where, file, files=(file,))

        return manifest_entries(path, entry, required=("path",), group=self.group)

    def named_samples(self, data: DataSplits) -> NamedSamples:
        """The paths of each split, from the folder or from where the manifest is; of shards their names."""
        plain = replace(data, labels=("",))
        named = super().named_samples(data) if in_shards(self.path) else FileDataset.named_samples(self, plain)
        return {split: named[split] for split in ("train", "validation")}


def _unused(test: int) -> str:
    return f" The data's own test split, {test} files, is not used." if test else ""
