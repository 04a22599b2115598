"""The kernel is compiled when the package is built or installed, and found where it is used."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

from core.sparse import build, compiler

ROOT = Path(__file__).parents[3]
ANSWER = 'extern "C" int answer() { return 42; }\n'
NO_COMPILER = {"PATH": "", "CXX": ""}
ATTENTION = """
import torch
from core import attend, attend_reference, explain
from core.sparse import Local

q, k, v = torch.randn(3, 1, 2, 600, 8).requires_grad_()
near = Local(64)
found, expected = attend(q, k, v, pattern=near), attend_reference(q, k, v, near.dense(600)[None, None])
torch.testing.assert_close(found, expected)
torch.testing.assert_close(*(torch.autograd.grad(out.square().sum(), (q, k, v)) for out in (found, expected)))
print(*explain(q, k, v, pattern=near))
"""


def python(*arguments: str, folder: Path, **environment: str) -> str:
    """What a process prints that imports the packages in a folder."""
    environment = os.environ | {"PYTHONPATH": str(folder), "PIP_NO_INDEX": "1"} | environment
    command = [sys.executable, *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    print(done.stdout, done.stderr)
    assert done.returncode == 0
    return done.stdout


@pytest.fixture(scope="module", autouse=True)
def quick_compiler(tmp_path_factory):
    """The kernel is compiled for real, but hardly optimised, which takes half the time."""
    path = tmp_path_factory.mktemp("compiler") / "c++"
    path.write_text('#!/bin/bash\nexec c++ "${@/#-O3/-O1}"\n')
    path.chmod(0o755)
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("CXX", str(path))
        yield


def wheel(source: Path, out: Path, **environment: str) -> Path:
    options = ("--no-deps", "--no-build-isolation", "--verbose", "--wheel-dir")
    python("-m", "pip", "wheel", *options, str(out), str(source), folder=out.parent, **environment)
    (found,) = out.iterdir()
    return found


def unpack(wheel: Path, folder: Path) -> Path:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """The project's files, without what was made of them."""
    folder = tmp_path_factory.mktemp("project") / "tree"
    folder.mkdir()
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    for name in ("core", "vision", "audio", "text"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "compiled"))
    return folder


@pytest.fixture(scope="module")
def with_kernel(tree, tmp_path_factory):
    """A wheel, by way of a source distribution."""
    folder = tmp_path_factory.mktemp("wheel")
    script = f"from setuptools import build_meta; build_meta.build_sdist({str(folder / 'sdist')!r})"
    python("-c", script, folder=tree)
    (source,) = (folder / "sdist").iterdir()
    return wheel(source, folder / "dist")


@pytest.fixture
def unpacked(with_kernel, tmp_path):
    return unpack(with_kernel, tmp_path / "site")


def attention(folder: Path, cache: Path, **environment: str) -> str:
    """Whether it is right, by which backend, and why that one."""
    return python("-c", ATTENTION, folder=folder, XDG_CACHE_HOME=str(cache), **environment)


def test_the_wheel_carries_the_kernel_and_is_for_this_platform(with_kernel, unpacked):
    python_tag, abi, platform = with_kernel.stem.split("-")[-3:]
    assert (python_tag, abi) == ("py3", "none") and platform != "any"
    libraries = sorted(path.name for path in (unpacked / "core/sparse/compiled").iterdir())
    assert len(libraries) == 2 * len(compiler.LEVELS) > 0
    assert {name.partition("-")[0] for name in libraries} == set(compiler.LEVELS)


def test_the_kernel_of_the_wheel_serves_where_there_is_no_compiler(unpacked, tmp_path):
    assert "compiled at install" in attention(unpacked, tmp_path / "cache", **NO_COMPILER)
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("what", ["edited", "cut"])
def test_a_library_of_another_source_or_a_broken_one_is_not_loaded(what, unpacked, tmp_path):
    """A library that is cut and mapped would end the process."""
    if what == "cut":
        for library in (unpacked / "core/sparse/compiled").glob("*.so"):
            library.write_bytes(library.read_bytes()[:5000])
    else:
        with (unpacked / "core/sparse/cpp/keys.h").open("a") as file:
            file.write("// edited\n")
    said = attention(unpacked, tmp_path / "cache", **NO_COMPILER)
    assert said.startswith("blockwise") and "not native: the C++ kernel can't be compiled here: there is no" in said


def test_without_a_compiler_the_wheel_is_for_all_platforms_and_the_first_use_compiles(tree, tmp_path, capsys):
    pure = wheel(tree, tmp_path / "dist", **NO_COMPILER)
    said = capsys.readouterr().out
    assert "The attention kernel is not compiled now, but at first use: there is no C++ compiler." in said
    assert pure.name.endswith("-py3-none-any.whl")
    folder = unpack(pure, tmp_path / "site")
    assert not (folder / "core/sparse/compiled").exists()
    assert attention(folder, tmp_path / "cache", **NO_COMPILER).startswith("blockwise")
    assert "compiled at first use" in attention(folder, tmp_path / "cache")


def test_an_editable_installation_has_the_kernel_beside_its_source(tree, tmp_path):
    folder = tmp_path / "tree"
    shutil.copytree(tree, folder, ignore=shutil.ignore_patterns("build", "*.egg-info"))
    (folder / "core/sparse/cpp/attention.cpp").write_text(ANSWER)
    old = folder / "core/sparse/compiled/avx2-0.so"
    old.parent.mkdir()
    old.write_text("")
    python("-c", f"from setuptools import build_meta; build_meta.build_editable({str(tmp_path)!r})", folder=folder)
    script = """from core.sparse import build, compiler
library, level = build.load_installed(*compiler.read_kernel())
print(library.answer(), level in compiler.LEVELS)"""
    assert python("-c", script, folder=folder).split() == ["42", "True"] and not old.exists()


# --- Which library is loaded ----------------------------------------------------------------------------------------


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """A folder of libraries of ANSWER, one for each level."""
    (tmp_path / "answer.cpp").write_text(ANSWER)
    compiler.install(tmp_path / "compiled", tmp_path / "answer.cpp")
    monkeypatch.setattr(build, "INSTALLED", tmp_path / "compiled")
    return tmp_path / "compiled"


def loaded() -> str:
    """The level that is loaded."""
    found = build.load_installed(ANSWER, {})
    assert found is None or found[0].answer() == 42
    return found[1] if found else ""


def can(monkeypatch, *instructions: str) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: dict.fromkeys(instructions, True))


X86 = pytest.mark.skipif("avx2" not in compiler.LEVELS, reason="of processors of one kind")
AVX2 = ("sse2", "avx2", "fma3")
AVX512 = (*AVX2, "avx512_f", "avx512_bw", "avx512_dq", "avx512_vl")
FULL = (*AVX512, "avx512_bf16")


@X86
@pytest.mark.parametrize(
    "instructions, level",
    [
        (FULL, "avx512_bf16"),
        (AVX512, "avx512"),
        (AVX512[:-1], "avx2"),
        (FULL[1:], ""),
        (AVX2, "avx2"),
        (AVX2[:2], ""),
        ((), ""),
    ],
)
def test_a_level_needs_all_its_instructions(instructions, level, installed, monkeypatch):
    can(monkeypatch, *instructions)
    assert loaded() == level


@X86
@pytest.mark.parametrize("what", ["missing", "no record", "one bit", "longer", "other machine"])
def test_where_the_best_library_is_not_whole_the_next_serves(what, installed, monkeypatch):
    can(monkeypatch, *FULL)
    for level, next_one in (("avx512_bf16", "avx512"), ("avx512", "avx2"), ("avx2", "")):
        (library,) = installed.glob(f"{level}-*.so")
        data = bytearray(library.read_bytes())
        match what:
            case "missing":
                library.unlink()
            case "no record":
                compiler.record_of(library).unlink()
            case "one bit":
                data[-100] ^= 1
                library.write_bytes(data)
            case "longer":
                library.write_bytes(data + b"\0")
            case "other machine":  # and whole
                data[18:20] = b"\xb7\0"
                library.write_bytes(data)
                compiler.record_of(library).write_bytes(compiler.summary(bytes(data)))
        assert loaded() == next_one


@X86
def test_a_compiler_that_is_set_to_this_processor_is_set_back(tmp_path, monkeypatch):
    """Else a wheel would only run on processors like the one that made it."""
    monkeypatch.setattr(compiler, "compilers", lambda: iter([["c++", "-march=x86-64-v4"]]))
    source = "#if defined(__AVX512CD__) || defined(__BMI2__)\n#error\n#endif\n"
    (tmp_path / "answer.cpp").write_text(source + ANSWER)
    assert len(compiler.install(tmp_path / "compiled", tmp_path / "answer.cpp")) == 2 * len(compiler.LEVELS)


def test_a_library_of_another_source_is_not_found(installed):
    assert loaded()
    assert build.load_installed(ANSWER + "// edited", {}) is None
    assert build.load_installed(ANSWER, {"edited.h": ""}) is None


def test_a_kernel_that_does_not_compile_is_an_answer(tmp_path):
    (tmp_path / "answer.cpp").write_text("int answer() { return forty_two; }\n")
    with pytest.raises(compiler.BuildError, match=r"c\+\+ cannot compile it: .*error"):
        compiler.install(tmp_path / "compiled", tmp_path / "answer.cpp")
