"""What an objective notes of its samples' features, and the figures that are taken of them."""

import math

import numpy as np
import pytest
import torch

from core.objectives.features import MOST, feature_figures, note_features, record_features


def test_figures_are_those_of_the_paper():
    """Against numpy, the effective rank by equations 1 and 2 of RankMe."""
    x = torch.randn(40, 12) @ torch.randn(12, 12) + 2
    values = np.linalg.svd(x.double().numpy(), compute_uv=False)
    shares = values / values.sum()
    unit = x.double().numpy() / np.linalg.norm(x.double().numpy(), axis=1, keepdims=True)
    cosines = (unit @ unit.T)[~np.eye(40, dtype=bool)]
    found = feature_figures(x)
    assert found["rank"] == pytest.approx(math.exp(-(shares * np.log(shares)).sum()), rel=1e-4)
    assert found["cosine"] == pytest.approx(cosines.mean(), rel=1e-4)
    assert found["spread"] == pytest.approx(x.numpy().std(axis=0).mean() / np.sqrt((x.numpy() ** 2).mean()), rel=1e-5)


def test_extremes():
    """All alike, all orthogonal, all zero; and neither scale nor the order of the samples matters."""
    alike = feature_figures(torch.randn(16).expand(8, 16))
    assert alike == pytest.approx({"spread": 0, "rank": 1, "cosine": 1}, abs=1e-4)
    apart = feature_figures(torch.eye(8))
    assert apart["rank"] == pytest.approx(8, rel=1e-5) and apart["cosine"] == pytest.approx(0, abs=1e-6)
    assert feature_figures(torch.zeros(8, 16)) == {"spread": 0, "rank": 1, "cosine": 0}
    x = torch.randn(30, 7)
    for other in (1e6 * x, 1e-6 * x, x.flip(0)):
        assert feature_figures(other) == pytest.approx(feature_figures(x), rel=1e-4)


def test_what_has_no_figures():
    assert feature_figures(torch.randn(1, 4)) == {} == feature_figures(torch.zeros(0, 4))
    assert feature_figures(torch.tensor([[1.0, torch.nan], [1.0, 2.0]])) == {}


def test_of_many_vectors_evenly_spaced_ones_are_taken():
    x = torch.randn(2 * MOST + 10, 5)
    assert feature_figures(x) == feature_figures(x[::3])
    assert feature_figures(x.bfloat16())["rank"] == pytest.approx(feature_figures(x)["rank"], rel=1e-2)


def test_only_who_records_gets_them():
    x = torch.randn(3, 2, requires_grad=True)
    note_features(x)
    with record_features() as outer:
        note_features(x)
        with record_features() as inner:
            note_features(2 * x)
    note_features(x)
    assert torch.equal(outer[0], x) and torch.equal(inner[0], 2 * x) and len(outer) == len(inner) == 1
    assert not outer[0].requires_grad
