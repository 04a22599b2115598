"""Files that are there whole or not at all, under names that any file system takes."""

import os
import re
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from core import UserError


def file_names(names: Sequence[str]) -> list[str]:
    """A name for each, safe, no two alike in either case."""
    found: list[str] = []
    taken: set[str] = set()
    for name in names:
        safe = wanted = re.sub(r"[^\w.-]+", "_", name, flags=re.ASCII).strip("._")[:100] or "unnamed"
        number = 1
        while safe.lower() in taken:
            number += 1
            safe = f"{wanted}-{number}"
        taken.add(safe.lower())
        found.append(safe)
    return found


def write_whole(path: Path, write: Callable[[Path], None]) -> None:
    """Write elsewhere in the folder, then move into place."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".") as part:
            write(Path(part) / path.name)
            os.replace(Path(part) / path.name, path)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}.") from None
