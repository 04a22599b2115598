"""Decoded files, kept on disk so that each is decoded once."""

import os
import warnings
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryFile
from uuid import uuid4

import numpy as np

from ..errors import UserError
from ..files import File, Packed


def open_cache(directory: Path | None, data: Path | None) -> "DecodeCache | None":
    """data: the folder of the files to be decoded, in which a cache would be read as a class."""
    if directory is None:
        return None
    if data is not None and data.is_dir() and directory.resolve().is_relative_to(data.resolve()):
        raise UserError(f"--data.cache {directory} lies inside --data.path {data}: name a directory elsewhere.")
    return DecodeCache(directory)


class DecodeCache:
    """A directory with an array for each file and form that it was decoded to; processes and runs may share it.

    A file whose size or time has changed is decoded again. If nothing can be written, files are decoded each time.
    """

    def __init__(self, directory: Path):
        self.directory, self.writable = directory, True
        try:  # now, so that the warning comes once, and not from each loading process
            directory.mkdir(parents=True, exist_ok=True)
            TemporaryFile(dir=directory).close()
        except OSError as error:
            self._give_up(error)

    def get(self, path: File, form: str, decode: Callable[[], np.ndarray]) -> np.ndarray:
        """The file as `decode` returns it, or returned it before.

        form: what the file is decoded to, such as a sampling rate.
        """
        try:
            key = _identity(path) + f" {form}".encode()
        except OSError:
            return decode()  # its message says what is wrong with the file
        entry = self.directory / f"{sha256(key).hexdigest()}.npy"
        try:
            return np.load(entry, allow_pickle=False)
        except Exception:  # absent, or damaged in one of many ways
            array = decode()
        if self.writable:
            try:
                self._write(entry, array)
            except OSError as error:
                self._give_up(error)
        return array

    def _write(self, entry: Path, array: np.ndarray) -> None:
        """Whole or not at all, whoever else writes the same."""
        part = self.directory / f"{uuid4().hex}.part"
        try:
            with part.open("wb") as file:
                np.save(file, array, allow_pickle=False)
            os.replace(part, entry)
        except BaseException:
            part.unlink(missing_ok=True)
            raise

    def _give_up(self, error: OSError) -> None:
        self.writable = False
        warnings.warn(f"{self.directory}: decoded files cannot be kept there ({error}).", stacklevel=3)


def _identity(path: File) -> bytes:
    """Another one for a file whose size or time has changed."""
    if isinstance(path, Packed):
        return path.identity.encode()
    status = path.stat()
    return os.fsencode(path.resolve()) + f"\0{status.st_size} {status.st_mtime_ns}".encode()
