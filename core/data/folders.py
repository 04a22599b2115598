"""Files below a directory, and directories of classes, without the files that programs leave behind."""

import os
import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import UserError
from ..files import printable, reason
from .manifest import SPLITS, check_sample, normal_name

# Directories that file managers, archives and drives leave behind, besides those whose name begins with a dot.
LEFTOVERS = {
    "$recycle.bin",
    "#recycle",
    "#snapshot",
    "@eadir",
    "@recently-snapshot",
    "@recycle",
    "__macosx",
    "__pycache__",
    "lost+found",
    "network trash folder",
    "recycler",
    "system volume information",
    "temporary items",
    "~snapshot",
}

# Words in the names of directories that may be splits, besides those in SPLITS: seg_train, val2017.
TRAINING, HELD_OUT = (
    re.compile(rf"(?<![a-z])({words})(set|data|images)?(?![a-z])")
    for words in ("train|training|trn", "test|testing|tst|val|valid|validation|dev|eval|evaluation")
)

ClassFiles = dict[str, list[Path]]


def find_files(folder: Path, suffixes: Collection[str]) -> list[Path]:
    """The files below a directory whose name ends in one of `suffixes` (lower case, with the dot), sorted.

    Links are followed, but each directory is read once. What cannot be read as a file is refused.
    """
    files = sorted(walk_files(folder, suffixes))
    for file in files:
        check_sample(file)
    return files


def find_classes(root: Path, suffixes: Collection[str]) -> dict[str, ClassFiles]:
    """The files of each split and class: of root/<class>, all for training, or of root/<split>/<class>, the splits
    named as in SPLITS. A class is named as its directory, with escapes for what cannot be written."""
    if not root.is_dir():
        raise UserError(f"{root} is not a directory: --data.path names the folder that holds a directory per class.")
    folders = _folders(root)
    splits = [folder for folder in folders if folder.name.casefold() in SPLITS]
    classes = [folder for folder in folders if folder not in splits]
    if classes and splits:
        classes = [folder for folder in classes if _holds_files(folder, suffixes)]  # beside a split may be documents
        names = [folder.name.casefold() for folder in splits]
        is_class = names == ["train"] and not _holds_classes(splits[0], suffixes)  # a vehicle, among others
        if classes and not is_class:
            raise UserError(
                f"{root} mixes a split ({splits[0].name}) with classes ({classes[0].name}): put the classes into the "
                "directories train and test, or rename one that is a class."
            )
        splits = [] if classes else splits
    if not splits:
        _refuse_split_of_other_names(root, folders)
        return {"train": _class_files(root, suffixes)}
    found: dict[str, Path] = {}
    for folder in splits:
        split = SPLITS[folder.name.casefold()]
        if split in found:
            raise UserError(
                f"{root} has two directories for one split, {found[split].name} and {folder.name}: leave one."
            )
        if not _holds_classes(folder, suffixes):
            raise UserError(f"{folder} holds no directory per class: a split's files are in {folder}/<class>/.")
        found[split] = folder
    if "train" not in found:
        raise UserError(f"{root} has a directory {splits[0].name}, but none named train.")
    files = {split: _class_files(folder, suffixes) for split, folder in found.items()}
    for split, folder in found.items():
        if unknown := sorted(set(files[split]) - set(files["train"])):
            named = ", ".join(map(repr, unknown[:5])) + (", ..." if len(unknown) > 5 else "")
            raise UserError(f"{folder}: class {named} has no directory in {found['train']}, so it can't be learnt.")
    return files


def find_unlabelled(root: Path, suffixes: Collection[str]) -> dict[str, list[Path]]:
    """The files below a directory, whatever directories are in it, all for training; or those of each split, if there
    are directories named as in SPLITS for more than training."""
    folders, files = _entries(root)
    folders = [folder for folder in folders if _holds_files(folder, suffixes)]
    splits = {folder: SPLITS.get(folder.name.casefold(), "") for folder in folders}
    if not {"validation", "test"} & set(splits.values()):
        _refuse_split_of_other_names(root, folders)
        return {"train": _without_split(root, suffixes)}
    loose = [folder for folder in folders if not splits[folder]]
    loose += [file for file in files if file.suffix.lower() in suffixes]
    if loose:
        split = next(folder for folder in folders if splits[folder] not in ("", "train"))
        raise UserError(
            f"{root} mixes a split ({split.name}) with {loose[0].name}: name the directory to train on by --data.path, "
            f"or put {loose[0].name} into the directory train."
        )
    if "train" not in splits.values():
        raise UserError(f"{root} has a directory {folders[0].name}, but none named train.")
    found: dict[str, list[Path]] = {}
    for folder, split in splits.items():
        found.setdefault(split, []).extend(_without_split(folder, suffixes))
    return found


def _without_split(root: Path, suffixes: Collection[str]) -> list[Path]:
    """The files below a directory; refused is a split further down, whose test files must not be trained on."""
    files = find_files(root, suffixes)
    inside: dict[Path, set[str]] = {}
    for folder in {folder for file in files for folder in file.relative_to(root).parents if folder.name}:
        if split := SPLITS.get(folder.name.casefold()):
            inside.setdefault(folder.parent, set()).add(split)
    for folder, splits in inside.items():
        if "train" in splits and len(splits) > 1:
            raise UserError(f"{root / folder} holds a split of its own: name it by --data.path.")
    return files


def _refuse_split_of_other_names(root: Path, folders: list[Path]) -> None:
    """Two directories that are named after splits, and have the same directories in them, are no classes."""
    trained, tested = (
        [folder for folder in folders if name.search(folder.name.casefold())] for name in (TRAINING, HELD_OUT)
    )
    for train in trained:
        for test in tested:
            if train != test and {path.name for path in _folders(train)} & {path.name for path in _folders(test)}:
                raise UserError(
                    f"{root} has the directories {train.name} and {test.name}, with the same directories in them: if "
                    "they are a split, name them train and test, and if they are classes, rename one."
                )


def _class_files(root: Path, suffixes: Collection[str]) -> ClassFiles:
    files: ClassFiles = {}
    for folder in _folders(root):
        inside = [SPLITS.get(path.name.casefold()) for path in _folders(folder)]
        if "train" in inside and {"validation", "test"} & set(inside):
            raise UserError(
                f"{folder} holds a split of its own: name it by --data.path, or put the split above the classes, as "
                "train/<class> and test/<class>."
            )
        found = find_files(folder, suffixes)
        if not found:
            kinds = ", ".join(sorted(suffixes))
            raise UserError(f"{folder} is a class without files: add some ({kinds}) or remove the directory.")
        files.setdefault(_class_name(folder), []).extend(found)
    return files


def _class_name(folder: Path) -> str:
    name = normal_name(printable(folder.name))
    if not name:
        raise UserError(f"{folder.parent} has a class directory whose name is blank: rename it.")
    return name


def walk_files(root: Path, suffixes: Collection[str]) -> Iterator[Path]:
    """As `find_files`, but in no order, and whether they can be read is not looked at."""
    waiting, seen = [root], set()
    while waiting:
        folder = waiting.pop()
        with _readable(folder):
            status = os.stat(folder)
        if (status.st_dev, status.st_ino) in seen:
            continue
        seen.add((status.st_dev, status.st_ino))
        folders, files = _entries(folder)
        yield from (file for file in files if file.suffix.lower() in suffixes)
        waiting += reversed(folders)


def _holds_files(folder: Path, suffixes: Collection[str]) -> bool:
    return next(walk_files(folder, suffixes), None) is not None


def _holds_classes(folder: Path, suffixes: Collection[str]) -> bool:
    return any(_holds_files(inside, suffixes) for inside in _folders(folder))


def _folders(root: Path) -> list[Path]:
    return _entries(root)[0]


def _entries(folder: Path) -> tuple[list[Path], list[Path]]:
    """The directories in one and the rest, each by name; leftovers are not among them."""
    folders, files = [], []
    with _readable(folder), os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            if not entry.name.startswith((".", "~$")) and entry.name.casefold() not in LEFTOVERS:
                (folders if _is_folder(entry) else files).append(Path(entry.path))
    return folders, files


def _is_folder(entry: os.DirEntry) -> bool:
    """Whether it is a directory, or a link to one that does not lead back up to where it is."""
    if not entry.is_symlink():
        return entry.is_dir()
    target = os.path.realpath(entry.path)
    if not Path(entry.name).suffix and not os.path.lexists(target):  # a directory, perhaps of a disk that is not there
        raise UserError(f"{entry.path} is a link to {target}, which is not there: mend the link or remove it.")
    return os.path.isdir(target) and not Path(os.path.realpath(os.path.dirname(entry.path))).is_relative_to(target)


@contextmanager
def _readable(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"The directory {folder} cannot be read: {reason(error)}.") from None
