"""A few hundred of the random calls of fuzz.py, without the sanitizer."""

import random

import jaxtyping
import pytest
from fuzz_rows import run_row
from fuzz_ways import run


@pytest.mark.parametrize("right", [True, False], ids=["right", "wrong"])
@pytest.mark.parametrize("one", [run, run_row], ids=["a batch", "a row"])
def test_each_call_is_refused_or_right(one, right, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as in production, where nobody checks before
    outcomes = {one(random.Random(seed), right)[1] for seed in range(150)}
    assert "result" in outcomes and right != ("error" in outcomes)
