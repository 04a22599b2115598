"""A compiled library is kept whole, checked before it is loaded, and made anew where anything is wrong with it."""

import ctypes
import stat
import subprocess
import sys
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch

from core import attend, attend_reference
from core.sparse import Local, build, compiler, native

ANSWER = 'extern "C" int answer() { return 42; }\n'


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """The user's cache, empty."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "trivium" / "kernels"


@pytest.fixture
def compilations(monkeypatch):
    """How often something was compiled, as the length of a list."""
    found, compile_ = [], build.compile_library
    monkeypatch.setattr(build, "compile_library", lambda *args: found.append(args) or compile_(*args))
    return found


def only(cache: Path, suffix: str) -> Path:
    (path,) = cache.glob(f"*{suffix}")
    return path


def answer() -> int:
    return build.load(ANSWER).answer()


def test_compiled_once_and_kept_for_the_user_alone(cache, compilations):
    assert answer() == 42 and answer() == 42
    assert len(compilations) == 1
    assert stat.S_IMODE(cache.stat().st_mode) == 0o700
    size, digest = only(cache, ".sha256").read_text().split()
    code = only(cache, ".so").read_bytes()
    assert int(size) == len(code) and digest == sha256(code).hexdigest()
    assert not list(cache.glob(".*"))  # nothing half-written stays


@pytest.mark.parametrize(
    "what", ["cut", "empty", "swapped", "longer", "one bit", "no record", "cut record", "binary record", "a directory"]
)
def test_what_is_not_whole_is_compiled_anew(what, cache, compilations):
    answer()
    library, record = only(cache, ".so"), only(cache, ".sha256")
    code = library.read_bytes()
    library.unlink()
    match what:
        case "cut":
            library.write_bytes(code[: len(code) // 2])
        case "empty":
            library.write_bytes(b"")
        case "swapped":
            build.load('extern "C" int answer() { return 41; }\n')
            other = next(path for path in cache.glob("*.so") if path != library)
            library.write_bytes(other.read_bytes())
        case "longer":
            library.write_bytes(code + b"\0")
        case "one bit":
            library.write_bytes(code[:-100] + bytes([code[-100] ^ 1]) + code[-99:])
        case "a directory":
            library.mkdir()
        case _:
            library.write_bytes(code)
    if what == "no record":
        record.unlink()
    if what == "cut record":
        record.write_text(record.read_text()[:20])
    if what == "binary record":
        record.write_bytes(b"\xff\xfe")
    before = len(compilations)
    assert answer() == 42 and len(compilations) == before + 1
    if what != "a directory":  # which nothing can take the place of
        assert library.read_bytes() == code
        assert answer() == 42 and len(compilations) == before + 1


@pytest.mark.parametrize("what", ["a file in its place", "writable by others", "no home", "relative"])
def test_without_a_cache_of_ones_own_each_process_compiles_for_itself(what, cache, compilations, monkeypatch, tmp_path):
    if what == "a file in its place":
        (tmp_path / "trivium").write_text("")
    elif what == "writable by others":
        cache.mkdir(parents=True)
        cache.chmod(0o777)
    else:
        monkeypatch.setenv("XDG_CACHE_HOME", "somewhere" if what == "relative" else "")
        monkeypatch.setenv("HOME", str(tmp_path / "trivium-home"))
        (tmp_path / "trivium-home").write_text("")
    monkeypatch.chdir(tmp_path)
    assert answer() == 42 and answer() == 42 and len(compilations) == 2
    assert not list(tmp_path.rglob("*.so"))


def test_a_process_that_runs_does_not_mind_what_becomes_of_the_cache(cache):
    """A library that is mapped and then cut ends a process."""
    source = 'extern "C" int answer(int i) { static int many[100000] = {42}; return many[i]; }'
    library = build.load(source)
    with only(cache, ".so").open("r+b") as file:
        file.truncate(0)
    assert library.answer(0) == 42 and build.load(source).answer(99_999) == 0


def test_a_file_system_that_is_full_or_read_only_is_done_without(cache, compilations, monkeypatch):
    """As root, who may write anywhere, a test cannot take the right to write away; so writing fails by itself."""

    def full(path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(build, "replacing", full)
    assert answer() == 42 and answer() == 42 and len(compilations) == 2 and not list(cache.iterdir())


def nowhere(**how):
    raise FileNotFoundError(2, "No usable temporary directory found")


def test_where_there_is_no_temporary_directory_what_is_in_the_cache_serves(monkeypatch):
    answer()
    monkeypatch.setattr(build, "TemporaryDirectory", nowhere)
    assert answer() == 42


def test_where_a_temporary_directory_may_hold_no_code_the_cache_does(cache, monkeypatch):
    load = ctypes.CDLL

    def only_from_the_cache(path):
        if not path.startswith(str(cache)):
            raise OSError("failed to map segment from shared object")
        return load(path)

    monkeypatch.setattr(build.ctypes, "CDLL", only_from_the_cache)
    assert answer() == 42


@pytest.mark.parametrize("what", ["source", "flags", "compiler", "torch", "processor"])
def test_all_that_a_library_is_made_from_is_in_its_name(what, cache, monkeypatch):
    answer()
    source, flags, run = ANSWER, (), build.run
    if what == "source":
        source += "// more"
    elif what == "flags":
        flags = ("-DMORE",)
    elif what == "torch":
        monkeypatch.setattr(torch, "__version__", "2.99")
    else:
        asked = "--version" if what == "compiler" else "-dM"
        other = lambda compiler, *args, **how: run(compiler, *args, **how) + ("more" if asked in args else "")
        monkeypatch.setattr(build, "run", other)
    build.load(source, flags)
    assert len(list(cache.glob("*.so"))) == 2


def test_no_compiler_is_an_answer(monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(build.BuildError, match=r"there is no C\+\+ compiler"):
        build.load(ANSWER)


@pytest.mark.parametrize(
    "cxx",
    ["no-such-compiler", "false", "'", "c++ --no-such-flag", "/etc/passwd"],
    ids=["none", "fails", "quote", "flag", "text"],
)
def test_a_compiler_that_cannot_serve_leaves_the_others(cxx, monkeypatch):
    monkeypatch.setenv("CXX", cxx)
    assert answer() == 42


def test_the_compiler_that_is_asked_for_is_taken_with_its_own_options(monkeypatch):
    source = 'extern "C" int answer() { return ANSWER; }\n'
    for value in (43, 44):
        monkeypatch.setenv("CXX", f"c++ -DANSWER={value}")
        assert build.load(source).answer() == value


def test_a_header_is_part_of_what_a_library_is_made_from():
    source = '#include "number.h"\nextern "C" int answer() { return NUMBER; }\n'
    for number in (41, 42):
        assert build.load(source, headers={"number.h": f"#define NUMBER {number}\n"}).answer() == number


def test_a_library_that_cannot_be_loaded_leaves_the_other_compilers(monkeypatch):
    """As that of a compiler whose OpenMP is not the one that torch has loaded."""
    monkeypatch.setenv("CXX", "c++ -DLACKING=1")
    source = """
        extern "C" int no_such_function();
        #ifdef LACKING
        extern "C" int answer() { return no_such_function(); }
        #else
        extern "C" int answer() { return 42; }
        #endif
    """
    assert build.load(source).answer() == 42
    monkeypatch.setattr(build, "compilers", lambda: iter([["c++", "-DLACKING=1"]]))
    with pytest.raises(build.BuildError, match=r"the library that c\+\+ made cannot be loaded: .*no_such_function"):
        build.load(source)


def test_an_error_of_the_compiler_is_said():
    with pytest.raises(build.BuildError, match=r"c\+\+ cannot compile it: .*error"):
        build.load("int answer() { return forty_two; }\n")


def test_nowhere_to_compile_is_an_answer(monkeypatch):
    monkeypatch.setattr(compiler, "TemporaryDirectory", nowhere)
    with pytest.raises(build.BuildError, match="it cannot be compiled: No usable temporary directory found"):
        answer()


def forget_kernel():
    native._installed.cache_clear()
    native.kernel.cache_clear()


def test_where_the_kernel_cannot_be_compiled_blockwise_serves_and_says_why(monkeypatch, tmp_path):
    monkeypatch.setattr(build, "INSTALLED", tmp_path)
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    forget_kernel()
    try:
        assert native.why_not() == "the C++ kernel can't be compiled here: there is no C++ compiler"
        assert native.origin() == ""
        q, k, v = torch.randn(3, 1, 2, 600, 8)
        near = Local(64).dense(600)[None, None]
        torch.testing.assert_close(attend(q, k, v, pattern=Local(64)), attend_reference(q, k, v, near))
    finally:
        forget_kernel()


PROCESS = """
import torch
from core.sparse import build
print(build.load('extern "C" int answer() { return 42; }').answer())
with open("/proc/self/maps") as maps:
    assert len({line.split()[-1] for line in maps if "gomp" in line or "libomp" in line}) <= 1
"""


def test_processes_that_build_at_once_do_each_other_no_harm(cache):
    """And none of them loads a second OpenMP library."""
    command = [sys.executable, "-c", PROCESS]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [process.communicate()[0] for process in processes] == ["42\n"] * 2
    assert build._read(only(cache, ".so"))


HOME = """
import os
import sys
from core.sparse import build

kind, home = sys.argv[1:]
if os.geteuid() == 0:  # who may write anywhere
    os.setgid(54321)
    os.setuid(54321)
del os.environ["XDG_CACHE_HOME"]
os.environ["HOME"] = "/nonexistent" if kind == "none" else home
if kind == "none" and os.geteuid() == 54321:  # an account without a home
    del os.environ["HOME"]
found, compile_ = [], build.compile_library
build.compile_library = lambda *args: found.append(args) or compile_(*args)
print(*(build.load('extern "C" int answer() { return 42; }\\n').answer() for _ in range(2)), len(found))
"""


@pytest.mark.parametrize("kind, compiled", [("none", 2), ("read-only", 2), ("filled and read-only", 0), ("own", 1)])
def test_homes(kind, compiled, monkeypatch):
    with TemporaryDirectory() as name:  # not that of the test, which is closed to other users
        home = Path(name)
        if kind == "filled and read-only":
            monkeypatch.setenv("XDG_CACHE_HOME", str(home / ".cache"))
            answer()
            for folder in (".cache/trivium/kernels", ".cache/trivium", ".cache"):
                (home / folder).chmod(0o555)
        home.chmod(0o777 if kind == "own" else 0o555)
        before = sorted(home.rglob("*"))
        done = subprocess.run([sys.executable, "-c", HOME, kind, name], capture_output=True, text=True)
        assert done.stdout.split() == ["42", "42", str(compiled)], done.stderr
        assert kind == "own" or sorted(home.rglob("*")) == before
        for folder in (home, *home.rglob("*")):
            folder.chmod(0o755)  # so that it can be removed
