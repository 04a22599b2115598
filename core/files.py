"""Files: errors of reading are one sentence, and files are written completely or not at all."""

import codecs
import ctypes
import io
import json
import os
import re
import shutil
import stat
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError

from .errors import UserError

BOMS = {  # byte order marks; utf-32 comes first, because its mark begins with that of utf-16
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
# Parts of torch's messages when a disk is full.
DISK_FULL = ("PytorchStreamWriter", "file write failed", "unexpected pos", "iostream error")
PARTIAL = ".partial-"  # prefix of files that are not yet complete


class Packed(ABC):
    """What is read as a file and lies in another one, such as a shard, or in memory. str() names it in messages."""

    @abstractmethod
    def read_bytes(self) -> bytes: ...

    @property
    @abstractmethod
    def identity(self) -> str:
        """Another one for other contents."""


File = Path | Packed


def check_file(path: Path, what: str = "file") -> None:
    """Refuse anything but a regular file; a pipe or a device might never end."""
    try:
        mode = os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"There is no {what} {path}.") from None
    except (OSError, ValueError) as error:  # ValueError: a name with a null byte
        raise UserError(f"The {what} {path} cannot be read: {reason(error)}.") from None
    if not stat.S_ISREG(mode):
        kind = "a directory" if stat.S_ISDIR(mode) else "a pipe, socket or device"
        raise UserError(f"{path} is {kind}, not {'an' if what[0] in 'aeiou' else 'a'} {what}.")


def read_bytes(path: File, what: str = "file") -> bytes:
    if isinstance(path, Packed):
        return path.read_bytes()
    check_file(path, what)
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"The {what} {path} cannot be read: {reason(error)}.") from None


def open_file(path: File, what: str = "file") -> Any:
    """A binary file, to be read from its beginning and closed. Raises OSError as open does."""
    if isinstance(path, Packed):
        return io.BytesIO(path.read_bytes())
    check_file(path, what)
    return path.open("rb")


def read_text(path: Path, encoding: str = "utf-8", what: str = "text file") -> str:
    """The text of a file, with a line feed at each end of line. A byte order mark overrides the encoding."""
    content = read_bytes(path, what)
    encoding = next((known for mark, known in BOMS.items() if content.startswith(mark)), encoding)
    remedy = "save it as UTF-8, or name its encoding where --data.encoding is an option"
    try:
        text = content.decode(encoding).removeprefix("\ufeff")
    except LookupError:
        raise UserError(f"{encoding!r} is not an encoding that Python knows.") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not {encoding} text (byte {error.start}): {remedy}.") from None
    except ValueError as error:
        raise UserError(f"{path} is not {encoding} text ({first_line(error)}): {remedy}.") from None
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise UserError(f"{path} is not {encoding} text (a null character in line {line}): {remedy}.")
    return text


def printable(name: str) -> str:
    """A file's name as printable text: control characters and bytes that are not UTF-8 are escaped."""
    text = os.fsencode(name).decode("utf-8", "backslashreplace")
    return re.sub("[\0-\x1f\x7f-\x9f]", lambda match: match[0].encode("unicode_escape").decode(), text)


def user_cache(name: str) -> Path:
    """The user's folder for what can be made again; it need not exist. Raises RuntimeError without a home directory."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if os.path.isabs(base) else Path.home() / ".cache") / "trivium" / name


def read_json(path: Path, kind: Any = dict[str, Any]) -> Any:
    """The JSON in a file, checked against a type."""
    return parse_json(read_bytes(path), path, kind)


def parse_json(data: bytes, path: Any, kind: Any = dict[str, Any]) -> Any:
    """path: names where the data are from."""
    try:
        return _adapter(kind).validate_json(data, strict=True)
    except ValidationError as error:
        if "surrogate" in str(error):  # in a path that is not text; only the standard library reads it
            with suppress(ValueError, RecursionError):
                return _adapter(kind).validate_python(json.loads(data))
        fault = error.errors()[0]
        place = "".join(f"[{part!r}]" for part in fault["loc"])
        problem = fault["msg"][:1].lower() + fault["msg"][1:]
        raise UserError(f"{path} is not as it was written: {f'{place}: ' if place else ''}{problem}.") from None


@cache
def _adapter(kind: Any) -> TypeAdapter:
    return TypeAdapter(kind)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A file to write to, which replaces `path` when it is complete and on the disk.

    If anything fails, `path` is unchanged. Raises OSError if the file cannot be written.
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
    """A directory to write to, which replaces `folder` when it is complete and on the disk."""
    folder = Path(os.path.realpath(folder))
    partial = folder.with_name(f"{PARTIAL}{uuid.uuid4().hex[:12]}")
    try:
        with _as_os_error(folder):
            partial.mkdir(parents=True)
            yield partial
            _flush_all(partial)
            _move(partial, folder)
            flush(folder.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def filling(folder: Path) -> Iterator[Path]:
    """A directory to write to, whose entries are moved into `folder` when all are complete; other entries stay."""
    folder = Path(os.path.realpath(folder))
    partial = folder / f"{PARTIAL}{uuid.uuid4().hex[:12]}"
    try:
        with _as_os_error(folder):
            partial.mkdir(parents=True)
            yield partial
            _flush_all(partial)
            for path in sorted(partial.iterdir()):
                _move(path, folder / path.name)
            flush(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _move(partial: Path, place: Path) -> None:
    """Move a file or directory to its place; an older directory there stays if this fails."""
    if not place.is_dir():
        os.replace(partial, place)
    elif not _exchange(partial, place):
        old = partial.with_name(f"{PARTIAL}{uuid.uuid4().hex[:12]}")
        os.replace(place, old)
        try:
            os.replace(partial, place)
        except OSError:
            os.replace(old, place)
            raise
        shutil.rmtree(old, ignore_errors=True)


def _exchange(one: Path, other: Path) -> bool:
    """Swap two directories in one step, so that there is always one; False if the system cannot do that."""
    try:
        rename = ctypes.CDLL(None).renameat2
    except (AttributeError, OSError, TypeError):  # not Linux
        return False
    here, swap = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return rename(here, os.fsencode(one), here, os.fsencode(other), swap) == 0


def write_text(path: Path, text: str) -> None:
    with replacing(path) as partial:
        partial.write_text(
            text, encoding="utf-8", errors="backslashreplace"
        )  # names of files may hold bytes that are not text


def write_json(path: Path, value: Any, indent: int | None = 2) -> None:
    write_text(path, json.dumps(value, indent=indent))


def flush(path: Path) -> None:
    """Write to the disk itself: a rename must not happen before the content is there."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _flush_all(folder: Path) -> None:
    for path in (*folder.rglob("*"), folder):
        flush(path)


@contextmanager
def _as_os_error(path: Path) -> Iterator[None]:
    """Inside, errors of writing are OSErrors that name `path`, also those of torch and safetensors for a full disk."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, reason(error), str(path)) from error
    except (RuntimeError, SafetensorError) as error:
        if isinstance(error, RuntimeError) and not any(sign in str(error) for sign in DISK_FULL):
            raise
        raise OSError(None, first_line(error), str(path)) from error


def reason(error: Exception) -> str:
    """The reason why a file cannot be read or written."""
    return getattr(error, "strerror", None) or first_line(error)


def first_line(error: Exception) -> str:
    """The first line of an error's message, with the second if it ends in a colon."""
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()] or [type(error).__name__]
    return " ".join(lines[: 2 if lines[0].endswith(":") else 1]).rstrip(".")
