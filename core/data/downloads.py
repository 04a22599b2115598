"""A directory with a bounded number of bytes, of what can be fetched or made again; processes and runs share it."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from ..errors import UserError
from ..files import reason

T = TypeVar("T")
UNFINISHED = ".partial"  # suffix of downloads that are not yet complete
TRIES = 5


class Downloads:
    """room: most bytes that are kept; those files go first that were used longest ago."""

    def __init__(self, folder: Path, room: int):
        self.folder, self.room = folder, room

    def open(self, key: str, size: int, fill: Callable[[Path], Any], opened: Callable[[Path], T]) -> T:
        """What `opened` makes of a file. size: its bytes, as far as they are known. fill: writes it if it is not there;
        of several processes one does it."""
        file = self.folder / key
        try:
            for _ in range(TRIES):
                if not file.exists():
                    self._fill(file, size, fill)
                try:
                    found = opened(file)
                    os.utime(file)
                    return found
                except FileNotFoundError:  # another process has made room in the meantime
                    continue
        except OSError as error:
            raise UserError(f"Shards cannot be kept in {self.folder} (--data.downloads): {reason(error)}.") from None
        raise UserError(f"{self.folder} has no room for the shards in use: raise --data.downloads-size.")

    def _fill(self, file: Path, size: int, fill: Callable[[Path], Any]) -> None:
        """Whole or not at all."""
        lock, locks = _file_lock(), self.folder / "locks"
        locks.mkdir(parents=True, exist_ok=True)
        partial = file.with_name(file.name + UNFINISHED)
        with lock(locks / f"{file.name}.lock"):
            if file.exists():
                return
            with lock(locks / "room.lock"):
                self._make_room(size)
            try:
                fill(partial)
                if (found := partial.stat().st_size) > size:
                    with lock(locks / "room.lock"):
                        self._make_room(found, partial)
                os.replace(partial, file)
            finally:
                partial.unlink(missing_ok=True)

    def _make_room(self, size: int, but: Path | None = None) -> None:
        """A process that has a removed file open can still read it."""
        if size > self.room:
            raise UserError(f"A shard of {size:,} bytes has no room in {self.folder}: raise --data.downloads-size.")
        kept = []
        for entry in os.scandir(self.folder):
            if entry.is_file() and Path(entry.path) != but:
                status = entry.stat()
                kept.append((status.st_mtime, status.st_size, entry.path))
        total = size + sum(bytes_ for _, bytes_, _ in kept)
        for _, bytes_, path in sorted(kept):
            if total <= self.room:
                return
            if not path.endswith(UNFINISHED):
                Path(path).unlink(missing_ok=True)
                total -= bytes_


def _file_lock() -> Any:
    try:
        from filelock import FileLock
    except ImportError:
        raise UserError('Shards of an address need the package filelock: pip install -e ".[shards]".') from None
    return FileLock
