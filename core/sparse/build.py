"""The C++ kernel, compiled at first use, kept in the user's cache, and checked before it is loaded.

A library's name in the cache is a hash of all it is made from: the source and its headers, the flags, the compiler,
torch, and the processor as the compiler sees it. Its size and SHA-256 are kept in another file. A library is
compiled again if its size or hash differs. Where the cache cannot be written, each process compiles for itself.
"""

import ctypes
import os
import platform
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from hashlib import sha256
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import torch

from ..errors import UserError
from ..files import read_bytes, reason, replacing

MAC = sys.platform == "darwin"
# Neither -Ofast nor -ffast-math: the kernel looks for NaN and inf.
FLAGS = (
    "-std=c++20",
    "-O3",
    "-mcpu=native" if platform.machine() in ("arm64", "ppc64le") else "-march=native",
    *(("-mprefer-vector-width=512",) if platform.machine() in ("x86_64", "AMD64") else ()),
    "-ffp-contract=fast",
    "-fno-trapping-math",
    "-fPIC",
)
# Only the compiler is asked for OpenMP, not the linker: its symbols then come from the OpenMP library that torch
# has loaded. A second one in the process would start threads of its own.
OPENMP = ("-Xclang", "-fopenmp") if MAC else ("-fopenmp",)
LINK = ("-shared", "-undefined", "dynamic_lookup") if MAC else ("-shared",)


class BuildError(Exception):
    """Why there is no library, in a few words."""


class Source(NamedTuple):
    """A C++ source, the headers that it includes (text by file name), and the compiler's flags."""

    code: str
    headers: Mapping[str, str]
    flags: tuple[str, ...]


def load(code: str, flags: Sequence[str] = (), headers: Mapping[str, str] | None = None) -> ctypes.CDLL:
    """The library of a C++ source that uses OpenMP; flags: for this one, in addition to FLAGS."""
    source = Source(code, headers or {}, (*FLAGS, *flags))
    if os.name != "posix":
        raise BuildError(f"it is not compiled on {platform.system()}")
    problems = []
    for compiler in _compilers():
        try:
            return _load(compiler, source)
        except BuildError as error:
            problems.append(str(error))
        except OSError as error:
            problems.append(f"it cannot be compiled: {reason(error)}")
    raise BuildError(problems[0] if problems else "there is no C++ compiler")


def _compilers() -> Iterator[list[str]]:
    """The compilers of this machine, each as the words that its command starts with."""
    for command in (os.environ.get("CXX", ""), "c++", "g++", "clang++"):
        with suppress(ValueError):  # a quotation that does not end
            words = shlex.split(command)
            if words and shutil.which(words[0]):
                yield words


def _load(compiler: list[str], source: Source) -> ctypes.CDLL:
    version = _run(compiler, "--version")
    processor = _run(compiler, *source.flags, "-dM", "-E", "-x", "c++", os.devnull)  # what -march=native switches on
    text = (source.code, *chain.from_iterable(source.headers.items()))
    options = (*compiler, *source.flags, *OPENMP, *LINK)
    parts = (*text, *options, version, processor, torch.__version__, platform.machine())
    name = sha256("\0".join(parts).encode()).hexdigest()
    folder = _cache()
    kept = None if folder is None else folder / f"{name}.so"
    with TemporaryDirectory(prefix="trivium-") as private:
        # Each process loads a copy: later changes of the one in the cache cannot reach it.
        library = Path(private) / "kernel.so"
        code = _read(kept)
        if code is None:
            _compile(compiler, source, library)
            _keep(library, kept)
        else:
            library.write_bytes(code)
        try:
            return ctypes.CDLL(str(library))
        except OSError as error:
            if _read(kept) is not None:  # on some machines no code in a temporary directory may be run
                with suppress(OSError):
                    return ctypes.CDLL(str(kept))
            raise BuildError(f"the library that {compiler[0]} made cannot be loaded: {error}") from None


def _compile(compiler: list[str], source: Source, library: Path) -> None:
    code, compiled = library.with_suffix(".cpp"), library.with_suffix(".o")
    for name, text in {code.name: source.code, **source.headers}.items():
        (library.parent / name).write_text(text)
    _run(compiler, *source.flags, *OPENMP, "-c", code.name, "-o", compiled.name, folder=library.parent)
    _run(compiler, *source.flags, *LINK, compiled.name, "-o", library.name, folder=library.parent)


def _run(compiler: list[str], *arguments: str, folder: Path | None = None) -> str:
    command = [*compiler, *arguments]
    try:
        done = subprocess.run(
            command, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace"
        )
    except OSError as error:
        raise BuildError(f"{compiler[0]} cannot be run: {error.strerror}") from None
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise BuildError(f"{compiler[0]} cannot compile it: {next((x for x in lines if 'error' in x), lines[0])}")
    return done.stdout


# --- The cache ------------------------------------------------------------------------------------------------------


def _cache() -> Path | None:
    """The user's folder for compiled code; None where there is none that other users cannot write to."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    try:
        folder = (Path(base) if os.path.isabs(base) else Path.home() / ".cache") / "trivium" / "kernels"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.stat()
    except (OSError, RuntimeError):  # RuntimeError: there is no home directory
        return None
    own = status.st_uid in (os.geteuid(), 0)
    return folder if own and not status.st_mode & 0o022 else None


def _read(kept: Path | None) -> bytes | None:
    """A library in the cache; None if it is missing or not as it was written."""
    if kept is None:
        return None
    try:
        code, checksum = read_bytes(kept), read_bytes(_checksum(kept))
    except UserError:
        return None
    return code if checksum == _summary(code) else None


def _keep(library: Path, kept: Path | None) -> None:
    """Copy a library into the cache, if the cache can be written."""
    if kept is None:
        return
    code = library.read_bytes()
    with suppress(OSError):
        kept.unlink(missing_ok=True)  # so that no part of a broken one is kept
        with replacing(kept) as partial:
            partial.write_bytes(code)
        with replacing(_checksum(kept)) as partial:
            partial.write_bytes(_summary(code))


def _checksum(kept: Path) -> Path:
    return kept.with_suffix(".sha256")


def _summary(code: bytes) -> bytes:
    return f"{len(code)} {sha256(code).hexdigest()}\n".encode()
