"""A few hundred of the random calls of fuzz.py, without the sanitizer."""

import platform
import random

import jaxtyping
import pytest
from fuzz_norms import run_norms
from fuzz_rows import run_row
from fuzz_turns import run_turns
from fuzz_ways import run

from core.sparse import native


@pytest.mark.parametrize("right", [True, False], ids=["right", "wrong"])
@pytest.mark.parametrize("one", [run, run_row], ids=["a batch", "a row"])
def test_each_call_is_refused_or_right(one, right, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as in production, where nobody checks before
    outcomes = {one(random.Random(seed), right)[1] for seed in range(150)}
    assert "result" in outcomes and right != ("error" in outcomes)


def test_features_are_turned_as_by_operators():
    assert {run_turns(random.Random(seed))[1] for seed in range(150)} == {"C++", "operators"}


def test_norms_are_as_by_operators():
    ours = {"C++"} if hasattr(native.kernel(), "norm_bf16") else set()
    assert {run_norms(random.Random(seed))[1] for seed in range(150)} == {"operators", *ours}


X86 = {"vectors of 64 bytes": "-D__AVX512F__", "vectors of 16 bytes": "-mno-avx"}
FLAGS = X86 if platform.machine() in ("x86_64", "AMD64") else {"vectors of 64 bytes": "-D__AVX512F__"}


@pytest.mark.parametrize("name", FLAGS)
def test_vectors_of_other_machines(name, monkeypatch):
    """Compilers make several instructions of a vector that is too long for this machine."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    kernel = native.load_library((FLAGS[name],))
    monkeypatch.setattr(native, "kernel", lambda: kernel)
    outcomes = {one(random.Random(seed), True)[1] for one in (run, run_row) for seed in range(1000, 1080)}
    assert outcomes == {"result"}
    assert {run_turns(random.Random(seed))[1] for seed in range(60)} == {"C++", "operators"}
