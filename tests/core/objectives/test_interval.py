"""The confidence interval of an accuracy."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from core import IGNORE, Classification
from core.objectives.interval import wilson_interval


@given(st.integers(1, 5000), st.data())
def test_it_is_wilsons(count, data):
    right = data.draw(st.integers(0, count))
    expected = binomtest(right, count).proportion_ci(0.95, "wilson")
    assert wilson_interval(right / count, count) == pytest.approx((expected.low, expected.high), abs=1e-6)


def test_ignored_targets_do_not_count():
    targets = torch.tensor([0, 1, 1, IGNORE, IGNORE])
    results = {"loss": torch.zeros(5), "probabilities": torch.tensor([[0.9, 0.1]] * 5), "targets": targets}
    assert Classification().interval(results) == pytest.approx(wilson_interval(1 / 3, 3))
    assert wilson_interval(0.0, 0) == (0.0, 1.0)
