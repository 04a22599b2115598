"""r2 is scikit-learn's, also where targets do not vary."""

import pytest
import torch
from sklearn.metrics import r2_score

from core import Regression


@pytest.mark.parametrize("targets", [[1.0, 2.0, 4.0, 9.0], [7.0, 7.0, 7.0, 7.0], [0.1, 0.1, 0.1, 0.1]])
@pytest.mark.parametrize("off", [0.0, 0.5])
def test_r2(targets, off):
    targets = torch.tensor(targets, dtype=torch.float64)
    found = Regression(mean=3.0, std=2.0).metrics({"predictions": targets + off, "targets": targets})
    assert found["r2"] == pytest.approx(r2_score(targets, targets + off), abs=1e-12)
