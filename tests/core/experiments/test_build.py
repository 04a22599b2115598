"""The samples that a report shows."""

import pytest
import torch

from core.experiments.build import is_correct, samples_to_show
from core.experiments.features import evenly_spaced


def test_the_most_confident_mistakes_come_first():
    targets = torch.zeros(30, dtype=torch.long)
    confidence = torch.full((30,), 0.1)
    confidence[[4, 9, 20]] = torch.tensor([0.7, 0.9, 0.6])  # of the wrong class
    probabilities = torch.stack([1 - confidence, confidence], dim=1)
    shown = samples_to_show(targets, probabilities, 9)
    assert shown[:3] == [9, 4, 20] and shown[3:] == [0, 5, 10, 15, 25]  # 20 is there already
    assert samples_to_show(targets, probabilities, 6)[:2] == [9, 4]  # a third of them at most


def test_of_several_targets_one_is_enough():
    targets = torch.tensor([[1.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
    probabilities = torch.tensor([[0.1, 0.9, 0.2], [0.1, 0.9, 0.2]])
    assert is_correct(targets, probabilities).tolist() == [True, False]
    assert samples_to_show(targets, probabilities, 3) == [1, 0]


@pytest.mark.parametrize("size, count, expected", [(10, 5, [0, 2, 4, 6, 8]), (3, 12, [0, 1, 2]), (5, 0, [])])
def test_evenly_spaced_indices(size, count, expected):
    assert evenly_spaced(size, count) == expected
