"""The library of the C++ kernel: the installed one, or one compiled at first use and kept in the user's cache.

A library is checked before it is loaded: its size and SHA-256 are kept in another file. If they differ, it is not
loaded. The name of one in the cache is a hash of all it is made from: the source and its headers, the flags, the
compiler, torch, and the processor as the compiler sees it. Where the cache cannot be written, each process compiles for
itself.
"""

import ctypes
import os
import platform
from collections.abc import Mapping, Sequence
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from ..errors import UserError
from ..files import read_bytes, reason, replacing, user_cache
from .compiler import (
    FLAGS,
    INSTALLED,
    LEVELS,
    NATIVE,
    BuildError,
    Source,
    compile_library,
    compilers,
    installed_library,
    record_of,
    run,
    summary,
)


def load_installed(code: str, headers: Mapping[str, str]) -> tuple[ctypes.CDLL, str] | None:
    """The best installed library of a C++ source that this processor can run, and its level; None if there is none."""
    processor = torch.cpu.get_capabilities()
    for level, instructions in LEVELS.items():
        _, library = installed_library(level, code, headers, INSTALLED)
        if all(processor.get(name) for name in instructions) and (data := _read(library)) is not None:
            with suppress(OSError):  # it was made for another machine
                return _open(data, library), level
    return None


def load(code: str, flags: Sequence[str] = (), headers: Mapping[str, str] | None = None) -> ctypes.CDLL:
    """The library of a C++ source that uses OpenMP, compiled for this processor unless it is in the cache.

    flags: for this one, in addition to those of compiler.py.
    """
    source = Source(code, headers or {}, (*FLAGS, *NATIVE, *flags))
    if os.name != "posix":
        raise BuildError(f"it is not compiled on {platform.system()}")
    problems = []
    for compiler in compilers():
        try:
            return _load(compiler, source)
        except BuildError as error:
            problems.append(str(error))
        except OSError as error:
            problems.append(f"it cannot be compiled: {reason(error)}")
    raise BuildError(problems[0] if problems else "there is no C++ compiler")


def _load(compiler: list[str], source: Source) -> ctypes.CDLL:
    version = run(compiler, "--version")
    processor = run(compiler, *source.flags, "-dM", "-E", "-x", "c++", os.devnull)  # what -march=native switches on
    parts = (source.text, *compiler, version, processor, torch.__version__, platform.machine())
    folder = _cache()
    name = sha256("\0".join(parts).encode()).hexdigest()
    kept = None if folder is None else folder / f"{name}.so"
    data = _read(kept)
    if data is None:
        data = compile_library(compiler, source)
        _keep(data, kept)
    try:
        return _open(data, kept)
    except OSError as error:
        raise BuildError(f"the library that {compiler[0]} made cannot be loaded: {error}") from None


def _open(data: bytes, kept: Path | None) -> ctypes.CDLL:
    """Load a copy of a library: later changes of the one that is kept cannot reach it."""
    try:
        with TemporaryDirectory(prefix="trivium-") as private:
            copy = Path(private) / "kernel.so"
            copy.write_bytes(data)
            return ctypes.CDLL(str(copy))
    except OSError:  # on some machines no code in a temporary directory may be run, or there is none
        if kept is None or _read(kept) != data:
            raise
        return ctypes.CDLL(str(kept))


# --- The cache ------------------------------------------------------------------------------------------------------


def _cache() -> Path | None:
    """The user's folder for compiled code; None where there is none that other users cannot write to."""
    try:
        folder = user_cache("kernels")
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.stat()
    except (OSError, RuntimeError):  # RuntimeError: there is no home directory
        return None
    own = status.st_uid in (os.geteuid(), 0)
    return folder if own and not status.st_mode & 0o022 else None


def _read(kept: Path | None) -> bytes | None:
    """A library that is kept; None if it is missing or not as it was written."""
    if kept is None:
        return None
    try:
        data, record = read_bytes(kept), read_bytes(record_of(kept))
    except UserError:
        return None
    return data if record == summary(data) else None


def _keep(data: bytes, kept: Path | None) -> None:
    """Write a library into the cache, if the cache can be written."""
    if kept is None:
        return
    with suppress(OSError):
        kept.unlink(missing_ok=True)  # so that no part of a broken one is kept
        for path, content in {kept: data, record_of(kept): summary(data)}.items():
            with replacing(path) as partial:
                partial.write_bytes(content)
