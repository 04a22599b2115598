import itertools
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from timm.layers import resample_abs_pos_embed

from core import LearnedPositions, PositionResize, UserError, resize_positions, rotary_table, rotate, sincos_positions


@pytest.mark.parametrize("new", [(5, 5), (9, 3), (7, 7), (14, 20)])
@pytest.mark.parametrize("prefix", [0, 2])
def test_grid_resizing_equals_timms(new, prefix):
    weight = torch.randn(prefix + 49, 6)
    expected = resample_abs_pos_embed(weight[None], list(new), [7, 7], num_prefix_tokens=prefix)[0]
    torch.testing.assert_close(resize_positions(weight, (7, 7), new, prefix), expected)


@pytest.mark.parametrize("mode", ["bicubic", "bilinear"])
@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize("new", [(5, 5), (9, 3), (2, 20), (4, 1), (1, 1)])
def test_each_kind_of_resizing_is_torchs(mode, antialias, align_corners, new):
    weight = torch.randn(42, 8, dtype=torch.double).requires_grad_()
    how = PositionResize(mode=mode, antialias=antialias, align_corners=align_corners)
    options = {"mode": mode, "antialias": antialias, "align_corners": align_corners}
    body = weight.view(1, 7, 6, 8).permute(0, 3, 1, 2)
    for size in ((new[0], 6), new):  # both at once is wrong for one column
        body = F.interpolate(body, size=size, **options)
    expected, found = body[0].flatten(1).T, resize_positions(weight, (7, 6), new, how=how)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(torch.autograd.grad(found.sum(), weight), torch.autograd.grad(expected.sum(), weight))
    square = resize_positions(weight, (7, 6), (max(new),) * 2, how=how).unflatten(0, (max(new),) * 2)
    kept = resize_positions(weight, (7, 6), new, how=replace(how, keep_aspect=True))
    torch.testing.assert_close(kept, square[: new[0], : new[1]].flatten(0, 1))


def test_a_grid_is_resized_one_axis_after_the_other():
    """Any grid, narrow ones included: for one column and several rows torch's two axes at once give something else."""
    weight = torch.randn(14 * 9, 3, dtype=torch.double)
    body = weight.view(1, 14, 9, 3).permute(0, 3, 1, 2)
    for new in itertools.product((1, 2, 9, 14, 20), repeat=2):
        by_rows = F.interpolate(body, size=(new[0], 9), mode="bicubic", antialias=True)
        expected = F.interpolate(by_rows, size=new, mode="bicubic", antialias=True)
        found = resize_positions(weight, (14, 9), new).view(1, *new, 3).permute(0, 3, 1, 2)
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def test_a_graph_resizes_alike():
    for new, keep_aspect in itertools.product(((4, 9), (7, 1)), (False, True)):
        positions = LearnedPositions(4, (5, 6), prefix=3, resize=PositionResize(keep_aspect=keep_aspect))
        graph = torch.export.export(positions, (new,), strict=False).module()
        torch.testing.assert_close(graph(new), positions(new))


def test_sequences_are_cut_and_cannot_grow():
    positions = LearnedPositions(4, 10)
    torch.testing.assert_close(positions(6), positions.weight[:6])
    with pytest.raises(UserError, match="11 tokens, but there are learned positions for only 10"):
        positions(11)
    with pytest.raises(UserError, match="one is a sequence, the other a grid"):
        positions((2, 5))


@pytest.mark.parametrize("unit", [False, True])
def test_rotary_scores_depend_on_distance_only(unit):
    table = rotary_table(16, (4, 6), unit=unit, theta=100.0)
    q, k = (torch.randn(1, 1, 1, 16, generator=torch.Generator().manual_seed(s)).expand(1, 1, 24, 16) for s in (0, 1))
    scores = (rotate(q, table) @ rotate(k, table).mT)[0, 0].view(4, 6, 4, 6)
    for step in [(0, 1), (1, 0), (2, 3), (1, -2)]:
        along = [
            scores[r, c, r + step[0], c + step[1]]
            for r in range(4 - step[0])
            for c in range(max(0, -step[1]), 6 - max(0, step[1]))
        ]
        torch.testing.assert_close(torch.stack(along), along[0].expand(len(along)), rtol=1e-4, atol=1e-4)


def test_rotary_leaves_the_prefix_and_lengths_alone():
    x = torch.randn(2, 3, 9, 8)
    turned = rotate(x, rotary_table(8, 7, prefix=2))
    torch.testing.assert_close(turned[:, :, :2], x[:, :, :2])
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1))
    assert rotate(x.bfloat16(), rotary_table(8, 9)).dtype == torch.bfloat16


def test_sincos_vectors_differ_and_have_one_norm():
    for size in (50, (5, 10)):
        table = sincos_positions(16, size)
        torch.testing.assert_close(table.norm(dim=-1), torch.full((50,), 8**0.5))
        similar = F.cosine_similarity(table[:, None], table[None], dim=-1) - torch.eye(50)
        assert similar.max() < 0.999


@pytest.mark.parametrize("make", [lambda: sincos_positions(6, (2, 2)), lambda: rotary_table(6, (2, 2))])
def test_widths_that_do_not_divide_are_refused(make):
    with pytest.raises(UserError, match="divisible by 4, not 6"):
        make()
