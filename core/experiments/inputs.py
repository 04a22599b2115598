"""What the predict commands are given: files, folders, manifests, or the lines of standard input."""

import os
import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..data.folders import walk_files
from ..data.manifest import JSON_LINES, TABLES, listed_file, manifest_rows
from ..errors import UserError


class Input(NamedTuple):
    """One of what is to be predicted."""

    names: dict[str, str]
    """The columns that name it in a table of results: its path, or its text."""
    source: Any
    """What is read: a path, or a text."""
    where: str
    """Names it in messages."""
    shown: str
    """Names it in a line of the results that are printed."""
    file: Path
    """What its plot is named after."""
    error: str = ""
    """Why it cannot be read, if that is known before."""


def file_inputs(given: Sequence[Path], suffixes: Collection[str], what: str) -> list[Input]:
    """The files that are given, those below folders whose name ends in one of `suffixes` (lower case, with the dot),
    those that manifests list, and if nothing is given those that the lines of standard input name.

    what: a word for such a file. That a file cannot be read is no error here: its input has the reason.
    """
    if not given:
        lines = read_stdin(f"{what} file", "a list of paths").splitlines()
        return [_of_file(Path(os.fsdecode(line))) for line in lines if line]
    found = []
    for path in given:
        if os.path.isdir(path):
            inside = sorted(walk_files(path, suffixes))
            if not inside:
                raise UserError(f"{path} holds no {what} files ({', '.join(sorted(suffixes))}).")
            found += map(_of_file, inside)
        elif is_manifest(path):
            found += _listed(path)
        else:
            found.append(_of_file(path))
    return found


def is_manifest(path: Path) -> bool:
    return path.suffix.lower() in (*TABLES, *JSON_LINES)


def read_stdin(what: str, instead: str) -> bytes:
    """Standard input; an error if it is a terminal, or empty. what, instead: what the sentence asks for."""
    closed = sys.stdin is None
    if not closed and not sys.stdin.isatty() and (content := sys.stdin.buffer.read()):
        return content
    raise UserError(f"Name at least one {what} after the run's directory, or give {instead} on standard input.")


def _of_file(path: Path) -> Input:
    return Input({"path": str(path)}, path, str(path), str(path), path)


def _listed(manifest: Path) -> list[Input]:
    """The files of a manifest, under the names that they have in it."""
    found = []
    for where, row in manifest_rows(manifest, ("path",), optional=()).items():
        path, error = manifest.parent / row["path"], ""
        try:
            path = listed_file(manifest.parent, where, row["path"])
        except UserError as mistake:
            error = str(mistake)
        found.append(Input({"path": row["path"]}, path, where, row["path"], path, error))
    return found
