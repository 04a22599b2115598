"""Files that are there whole or not at all, under names that any file system takes."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path

from core import UserError
from core.files import reason, replacing


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
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as partial:
            write(partial)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {reason(error)}.") from None
