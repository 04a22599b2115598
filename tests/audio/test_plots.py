import pytest
import torch

from audio import AST, ASTConfig, FeatureConfig
from audio.plots import draw_overlay, spread
from core import EncoderConfig
from core.attention.maps import attention_map
from core.experiments.figures import figure

ENCODER = EncoderConfig(dim=16, depth=2, heads=2)


def make(**changes):
    torch.manual_seed(0)
    return AST(ASTConfig(n_mels=20, patch_size=(8, 6), stride=(5, 4), classes=2, encoder=ENCODER, **changes)).eval()


def test_attention_is_drawn_on_the_bins_and_frames_of_its_patches():
    model = make(max_frames=60)
    grid = torch.zeros(3, 4)
    grid[1, 2] = 0.5
    found = spread(grid, model, (20, 25))
    assert found.shape == (20, 25)
    inside = torch.zeros(20, 25, dtype=torch.bool)
    inside[5:13, 8:14] = True  # the second row and third column of patches
    assert torch.equal(found > 0, inside) and found.max() == 1
    assert found[8, 10] == 1 and found[5, 8] == pytest.approx(1 / 4)  # alone on a place, and one of four there


@pytest.mark.parametrize("pool", ["prefix", "cls", "mean", "attention"])
def test_attention_maps_are_of_the_pooled_vector(pool):
    model, clip = make(max_frames=60, pool=pool), torch.randn(1, 8000)
    found = attention_map(model, clip)
    assert found.shape == (1, *model.tokens(clip).grid) and found.max() == 1 and found.min() >= 0


@pytest.mark.parametrize("mask_padding, frames", [(True, 48), (False, 60)])
def test_the_time_axis_counts_seconds(mask_padding, frames):
    model = make(max_frames=60, mask_padding=mask_padding, features=FeatureConfig(kind="kaldi"))
    _, [[axis]] = figure(3, 2)
    draw_overlay(axis, model, torch.randn(8000))  # 0.5 s: 48 frames of 25 ms, every 10 ms
    left, right, *_ = axis.images[0].get_extent()
    assert left == pytest.approx(0.0075) and right == pytest.approx(0.0075 + frames * 0.01)
    assert axis.images[1].get_extent() == axis.images[0].get_extent()
