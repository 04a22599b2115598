"""The expected calibration error: that of torchmetrics, and what it means."""

import pytest
import torch
from torchmetrics.functional.classification import multiclass_calibration_error

from core import IGNORE, Classification
from core.objectives.calibration import calibration_error


@pytest.mark.parametrize("bins", [5, 15])
@pytest.mark.parametrize("classes", [2, 10])
def test_it_is_that_of_torchmetrics(classes, bins):
    generator = torch.Generator().manual_seed(classes)
    logits = torch.randn(500, classes, generator=generator) * torch.rand(500, 1, generator=generator) * 5
    targets = logits.add(torch.randn(500, classes, generator=generator)).argmax(dim=1)
    probabilities = logits.softmax(dim=-1)
    expected = multiclass_calibration_error(probabilities, targets, classes, n_bins=bins, norm="l1")
    assert calibration_error(probabilities, targets, bins) == pytest.approx(expected.item(), abs=1e-6) and expected > 0


def test_a_certain_model_is_wrong_as_often_as_it_errs():
    certain = torch.eye(2)[[0] * 10]
    targets = torch.tensor([0] * 7 + [1] * 3)
    assert calibration_error(certain, targets) == pytest.approx(0.3)
    assert calibration_error(torch.tensor([[0.7, 0.3]] * 10), targets) == pytest.approx(0.0, abs=1e-7)
    assert calibration_error(certain[:0], targets[:0]) == 0.0


def test_the_error_of_calibrated_probabilities_falls_with_the_number_of_samples():
    generator = torch.Generator().manual_seed(0)
    found = []
    for size in (100, 20_000):
        first = 0.5 + 0.5 * torch.rand(size, generator=generator)
        targets = (torch.rand(size, generator=generator) > first).long()
        found.append(calibration_error(torch.stack([first, 1 - first], dim=1), targets))
    assert 0.05 < found[0] < 0.2 and found[1] < 0.01


def test_ignored_targets_do_not_count():
    probabilities = torch.tensor([[0.9, 0.1]] * 5)
    targets = torch.tensor([0, 1, 1, IGNORE, IGNORE])
    results = {"loss": torch.zeros(5), "probabilities": probabilities, "targets": targets}
    assert Classification().calibration(results) == pytest.approx(0.9 - 1 / 3)
