"""Files: read only where they are what they should be, and written whole or not at all."""

import json
import os
import shutil
import stat
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError

from .errors import UserError

T = TypeVar("T")
PARTIAL = ".partial-"  # what the names of files begin with that are not yet whole


def check_file(path: Path, what: str = "file") -> None:
    """Refuse what is not a regular file: a missing one, a directory, or a pipe or device, which might never end."""
    try:
        mode = os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"There is no {what} {path}.") from None
    except (OSError, ValueError) as error:  # ValueError: a name with a null byte
        raise UserError(f"The {what} {path} cannot be read: {reason(error)}.") from None
    if not stat.S_ISREG(mode):
        kind = "a directory" if stat.S_ISDIR(mode) else "a pipe, socket or device"
        raise UserError(f"{path} is {kind}, not {'an' if what[0] in 'aeiou' else 'a'} {what}.")


def read_bytes(path: Path, what: str = "file") -> bytes:
    check_file(path, what)
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"The {what} {path} cannot be read: {reason(error)}.") from None


def read_json(path: Path, kind: type[T] = dict[str, Any]) -> T:
    """The JSON in a file, checked against the type that it must have."""
    try:
        value = json.loads(read_bytes(path))
    except (ValueError, RecursionError) as error:  # bytes that are no text are a ValueError too
        raise UserError(f"{path} is not valid JSON: {first_line(error)}.") from None
    try:
        return _adapter(kind).validate_python(value, strict=True)
    except ValidationError as error:
        found = error.errors()[0]
        place = "".join(f"[{part!r}]" for part in found["loc"])
        raise UserError(f"{path}{place and ' at '}{place} is not as it was written: {found['msg']}.") from None


@cache
def _adapter(kind: Any) -> TypeAdapter:
    return TypeAdapter(kind)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A file to write to, which takes the place of `path` once it is complete and on the disk.

    If anything fails, `path` stays as it was. Raises OSError where the file cannot be written.
    """
    path = Path(os.path.realpath(path))
    if path.exists() and not path.is_file():
        raise OSError(f"{path} is not a regular file")
    partial = path.with_name(f"{PARTIAL}{uuid.uuid4().hex[:12]}{path.suffix}")
    try:
        with _as_os_error(path):
            yield partial
            if path.exists():
                shutil.copymode(path, partial)
            flush(partial)
            os.replace(partial, path)
            flush(path.parent)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def replacing_folder(folder: Path) -> Iterator[Path]:
    """A directory to write files to, which takes the place of `folder` once they are complete and on the disk."""
    folder = Path(os.path.realpath(folder))
    name = uuid.uuid4().hex[:12]
    partial, old = (folder.with_name(f"{PARTIAL}{name}{end}") for end in ("", ".old"))
    try:
        with _as_os_error(folder):
            partial.mkdir(parents=True)
            yield partial
            for path in (*partial.rglob("*"), partial):
                flush(path)
            if folder.exists():
                os.replace(folder, old)
            try:
                os.replace(partial, folder)
            except OSError:
                if old.exists():
                    os.replace(old, folder)
                raise
            flush(folder.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2))


def flush(path: Path) -> None:
    """To the disk itself: a rename must not overtake what it names."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def _as_os_error(path: Path) -> Iterator[None]:
    """Errors of writing name `path`. torch and safetensors have other classes for a disk that is full."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, reason(error), str(path)) from error
    except (RuntimeError, SafetensorError) as error:
        raise OSError(None, first_line(error), str(path)) from error


def reason(error: Exception) -> str:
    """Why a file cannot be read or written, in a few words."""
    return getattr(error, "strerror", None) or first_line(error)


def first_line(error: Exception) -> str:
    """What an error says, in one line; a first line that ends in a colon says nothing without the next."""
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()] or [type(error).__name__]
    return " ".join(lines[: 2 if lines[0].endswith(":") else 1]).rstrip(".")
