"""Files of which no labels are needed, from a folder or a manifest: to learn from by themselves."""

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

from ..config import configclass
from ..errors import UserError
from .dataset import FileDataset, Name, NamedSamples, ValidationFraction
from .folders import find_unlabelled
from .labelled import Entry, Sample, check_splits, manifest_entries, split_entries
from .manifest import Row, listed_file
from .splits import DataSplits


@configclass
class UnlabelledFiles(ValidationFraction, FileDataset):
    """Files at or below a folder, or listed in a CSV or JSON Lines file with `path`; classes and labels do no harm."""

    per_class: Name[None] = None
    group: str = ""
    """Column of the manifest whose equal values are never in two splits; `group` by default, if there."""

    def unlabelled(self, suffixes: Collection[str]) -> DataSplits[list[Sample]]:
        """The files whose name ends in one of `suffixes` (lower case, with the dot), with 0 for the class. Those of a
        test split are left alone: the validation split serves as the test split, too."""
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
        unused = f" The data's own test split, {len(test)} files, is not used." if test else ""
        return replace(data, note=data.note + unused)

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
        """The paths of each split, from the folder or from where the manifest is."""
        named = super().named_samples(replace(data, labels=("",)))
        return {split: named[split] for split in ("train", "validation")}
