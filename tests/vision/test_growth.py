"""Training images that grow to the model's size by whole patches."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from core import Batch, UserError, patch_grid
from vision.growth import make_growth, resized
from vision.model import ImageFormat, Preprocess


def form(size, patch_size=16, stride=None, **changes):
    return ImageFormat(size=size, channels=3, preprocess=Preprocess(), patch_size=patch_size, stride=stride, **changes)


@pytest.mark.parametrize(
    "of, start, sizes",
    [
        (form(32, 4), 20, [(20, 20), (24, 24), (28, 28), (32, 32)]),
        (form(32, 4), 21, [(24, 24), (28, 28), (32, 32)]),
        (form(224), 160, [(160, 160), (176, 176), (192, 192), (208, 208), (224, 224)]),
        (form((224, 448)), 192, [(192, 384), (208, 416), (224, 448)]),
        (form((448, 224)), 192, [(384, 192), (416, 208), (448, 224)]),
        (form((64, 96), (32, 16)), 32, [(32, 48), (64, 96)]),
        (form(8, 3, 1), 6, [(6, 6), (7, 7), (8, 8)]),
    ],
)
def test_sides_lose_whole_patches(of, start, sizes):
    assert make_growth(of, start).sizes == sizes


@given(st.data())
def test_all_sizes_hold_patches_as_the_full_one_does(data):
    sides = st.integers(1, 40)
    patch = data.draw(st.tuples(st.integers(1, 8), st.integers(1, 8)))
    stride = data.draw(st.none() | st.tuples(*(st.integers(1, side) for side in patch)))
    steps = stride or patch
    full = tuple(p + s * data.draw(sides) for p, s in zip(patch, steps, strict=True))
    short = full.index(min(full))
    growth = make_growth(form(full, patch, stride), data.draw(st.integers(patch[short], full[short] - steps[short])))
    assert growth.sizes[-1] == full
    grids = [patch_grid(size, patch, stride) for size in growth.sizes]
    assert [grid[short] for grid in grids] == [*range(grids[0][short], grids[-1][short] + 1)]
    assert sorted(growth.sizes) == growth.sizes


def test_images_are_scaled_and_full_ones_are_left_alone():
    rows = torch.linspace(0, 1, 32)[:, None].expand(2, 3, 32, 32)
    batch = Batch((rows.contiguous(),), torch.zeros(2))
    assert resized(batch, (32, 32)) is batch
    small = resized(batch, (16, 16)).inputs[0]
    assert small.shape == (2, 3, 16, 16)
    torch.testing.assert_close(small, rows.unflatten(2, (16, 2)).mean(dim=3)[..., ::2], atol=0.02, rtol=0)


def test_nothing_grows_unless_it_is_asked_for():
    growth, batch = make_growth(form(32, 4), None), Batch((torch.zeros(2, 3, 32, 32),), torch.zeros(2))
    assert growth.resized(batch, 0, 10) is batch


@pytest.mark.parametrize("start", [1, 3, 29, 32, 64])
def test_a_start_that_is_no_smaller_size_is_refused(start):
    with pytest.raises(UserError, match=f"start-size {start} must be at least 4, .* and at most 28: .* have 32"):
        make_growth(form(32, 4), start)


def test_images_of_native_size_do_not_grow():
    with pytest.raises(UserError, match="leave it out for images of native size"):
        make_growth(form(32, 4, max_tokens=64), 16)
