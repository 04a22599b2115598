"""A few hundred of the random calls of fuzz.py, without the sanitizer."""

import importlib.util
import random
import sys
from pathlib import Path

import jaxtyping
import pytest

spec = importlib.util.spec_from_file_location("fuzz", Path(__file__).with_name("fuzz.py"))
fuzz = sys.modules["fuzz"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(fuzz)


@pytest.mark.parametrize("right", [True, False], ids=["right", "wrong"])
def test_each_call_is_refused_or_right(right, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as in production, where nobody checks before
    outcomes = {fuzz.run(random.Random(seed), right)[1] for seed in range(150)}
    assert "result" in outcomes and right != ("error" in outcomes)
