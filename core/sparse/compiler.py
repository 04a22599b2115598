"""How C++ is compiled: the compilers of this machine, their flags, and where the kernel's source and libraries lie.

setup.py loads this file by its path, where there is no torch: it imports the standard library only.
"""

import os
import platform
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from hashlib import sha256
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

KERNEL = Path(__file__).parent / "cpp" / "attention.cpp"
INSTALLED = Path(__file__).parent / "compiled"  # the libraries that setup.py makes

MAC = sys.platform == "darwin"
X86 = platform.machine() in ("x86_64", "AMD64")
# Neither -Ofast nor -ffast-math: the kernel looks for NaN and inf.
FLAGS = (
    "-std=c++20",
    "-O3",
    *(("-mprefer-vector-width=512",) if X86 else ()),
    "-ffp-contract=fast",
    "-fno-trapping-math",
    "-fPIC",
)
# The processor that the compiler runs on.
NATIVE = ("-mcpu=native",) if platform.machine() in ("arm64", "ppc64le") else ("-march=native",)
# The processors that libraries are made for when the package is installed, the best first: the instructions that each
# needs, as torch.cpu.get_capabilities() names them, with the flag that lets the compiler use them. Whole levels such as
# x86-64-v3 also have instructions that torch does not report. The first flag undoes -march=native in CXX.
AVX2 = {"sse2": "-march=x86-64", "avx2": "-mavx2", "fma3": "-mfma"}
AVX512 = {f"avx512_{name}": f"-mavx512{name}" for name in ("f", "bw", "dq", "vl")}
BF16 = {"avx512_bf16": "-mavx512bf16"}
LEVELS: dict[str, dict[str, str]] = {}
if os.name == "posix" and X86:
    LEVELS = {"avx512_bf16": AVX2 | AVX512 | BF16, "avx512": AVX2 | AVX512, "avx2": AVX2}
elif os.name == "posix" and platform.machine() in ("arm64", "aarch64"):
    LEVELS = {"neon": {"neon": "-march=armv8-a"}}  # which each of them has
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

    @property
    def text(self) -> str:
        """All that it consists of."""
        return "\0".join((self.code, *chain.from_iterable(self.headers.items()), *self.flags, *OPENMP, *LINK))


def read_kernel(file: Path = KERNEL) -> tuple[str, dict[str, str]]:
    """The kernel's C++ and its headers."""
    return file.read_text("utf-8"), {path.name: path.read_text("utf-8") for path in sorted(file.parent.glob("*.h"))}


def compilers() -> Iterator[list[str]]:
    """The compilers of this machine, each as the words that its command starts with."""
    for command in (os.environ.get("CXX", ""), "c++", "g++", "clang++"):
        with suppress(ValueError):  # a quotation that does not end
            words = shlex.split(command)
            if words and shutil.which(words[0]):
                yield words


def compile_library(compiler: list[str], source: Source) -> bytes:
    """The library of a C++ source that uses OpenMP."""
    with TemporaryDirectory(prefix="trivium-") as name:
        folder = Path(name)
        for file, text in {"kernel.cpp": source.code, **source.headers}.items():
            (folder / file).write_text(text, "utf-8")
        run(compiler, *source.flags, *OPENMP, "-c", "kernel.cpp", "-o", "kernel.o", folder=folder)
        run(compiler, *source.flags, *LINK, "kernel.o", "-o", "kernel.so", folder=folder)
        return (folder / "kernel.so").read_bytes()


def run(compiler: list[str], *arguments: str, folder: Path | None = None) -> str:
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


def record_of(library: Path) -> Path:
    """The file that a library's size and SHA-256 are kept in."""
    return library.with_suffix(".sha256")


def summary(data: bytes) -> bytes:
    """What is kept there."""
    return f"{len(data)} {sha256(data).hexdigest()}\n".encode()


# --- When the package is installed ----------------------------------------------------------------------------------


def installed_library(level: str, code: str, headers: Mapping[str, str], folder: Path) -> tuple[Source, Path]:
    """The source for a level, and its library. The name is a hash of the source, so an older library is not found."""
    source = Source(code, headers, (*FLAGS, *LEVELS[level].values()))
    return source, folder / f"{level}-{sha256(source.text.encode()).hexdigest()[:16]}.so"


def install(folder: Path, kernel: Path = KERNEL) -> list[Path]:
    """Compile the kernel for each level into a folder that holds nothing else. A BuildError if there is no compiler."""
    shutil.rmtree(folder, ignore_errors=True)
    if not LEVELS:
        raise BuildError(f"it is not made for {platform.system()} on {platform.machine()}")
    files = []
    for level in LEVELS:
        source, library = installed_library(level, *read_kernel(kernel), folder)
        data = _compile_with_any(source)
        folder.mkdir(parents=True, exist_ok=True)
        for file, content in {library: data, record_of(library): summary(data)}.items():
            file.write_bytes(content)
            files.append(file)
    return files


def _compile_with_any(source: Source) -> bytes:
    problems = []
    for compiler in compilers():
        try:
            return compile_library(compiler, source)
        except BuildError as error:
            problems.append(str(error))
    raise BuildError(problems[0] if problems else "there is no C++ compiler")
