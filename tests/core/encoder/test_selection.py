"""Tokens left of whole sequences get what they get in the whole sequence where the others are padding."""

import pytest
import torch

from core import Encoder, EncoderConfig, Tokens, UserError
from core.attention.packing import Packing, Place, Selection
from core.attention.relation import Relation
from core.encoder.pack import pack
from core.sparse import Causal, Global, Local, PowersOfTwo, Window2d

GRIDS = [(4, 6), (5, 3), (1, 2)]
ON_GRID = {
    "none": {},
    "rotary": {"rotary": "2d"},
    "rotary from -1 to 1 (DINOv3)": {"rotary": "2d", "rotary_unit": True, "rotary_theta": 100.0},
    "rotary of a reference grid": {"rotary": "2d", "rotary_reference": (7, 7)},
    "rotary learned": {"rotary": "2d", "rotary_learned": True},
    "relative bias": {"relative_bias": (4, 4)},
    "relative bias, shared": {"relative_bias": (4, 4), "relative_bias_shared": True},
    "window": {"patterns": (Window2d(1), None), "rotary": "2d"},
}
ON_LINE = {
    "rotary": {"rotary": "1d", "rotary_theta": (100.0, 10_000.0)},
    "windows of tokens and all (ModernBERT)": {"rotary": "1d", "patterns": (None, Local(4, exact=True))},
    "causal": {"rotary": "1d", "patterns": Causal()},
    "global": {"patterns": PowersOfTwo() | Global(1)},
    "distance bias": {"distance_bias": (8, 16)},
    "disentangled": {"disentangled": (8, 9), "norm_order": "post"},
    "distance bias with gates": {"distance_bias": (8, 16), "distance_gate": True, "patterns": Local(2, exact=True)},
}


def randomised(config):
    encoder = Encoder(config).double()
    for parameter in encoder.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return encoder


def check(changes, places, prefix):
    """places: grid or length of each sequence."""
    torch.manual_seed(0)
    encoder = randomised(EncoderConfig(dim=16, depth=2, heads=2, mlp_dim=24, **changes))
    wholes, left, index, start = [], [], [], 0
    for place in places:
        body = place if isinstance(place, int) else place[0] * place[1]
        visible = torch.rand(prefix + body) < 0.6
        visible[: prefix + 1] = True
        x = torch.randn(1, prefix + body, 16, dtype=torch.float64)
        wholes.append((Tokens(x, grid=None if isinstance(place, int) else place, prefix=prefix), visible))
        index.append(start + visible.nonzero()[:, 0])
        left.append([int(visible.sum()), prefix, 0, 0])
        start += prefix + body
    row = pack([tokens for tokens, _ in wholes])
    selection = Selection(row.packing, torch.cat(index))
    tokens = Tokens(row.x[:, selection.index], packing=Packing(torch.tensor(left)), selection=selection)
    found = encoder(tokens)
    expected = [
        encoder(Tokens(whole.x, mask=visible[None], grid=whole.grid, prefix=prefix)).x[:, visible]
        for whole, visible in wholes
    ]
    torch.testing.assert_close(found.x, torch.cat(expected, dim=1), rtol=0, atol=1e-10)
    weights = torch.randn_like(found.x)
    gradients = [
        torch.autograd.grad((x * weights).sum(), list(encoder.parameters()))
        for x in (found.x, torch.cat(expected, dim=1))
    ]
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)


@pytest.mark.parametrize("prefix", [0, 2])
@pytest.mark.parametrize("changes", ON_GRID.values(), ids=ON_GRID)
def test_on_a_grid(changes, prefix):
    check(changes, GRIDS, prefix)


@pytest.mark.parametrize("prefix", [0, 1])
@pytest.mark.parametrize("changes", ON_LINE.values(), ids=ON_LINE)
def test_in_a_sequence(changes, prefix):
    check(changes, [9, 23, 1], prefix)


def test_a_grid_is_needed_where_positions_are_on_one():
    row = pack(Tokens(torch.randn(2, 5, 16)))
    tokens = Tokens(
        row.x[:, :4], packing=Packing.of([Place(2), Place(2)]), selection=Selection(row.packing, torch.arange(4))
    )
    with pytest.raises(UserError, match="needs tokens with a grid"):
        Encoder(EncoderConfig(dim=16, depth=1, heads=2, rotary="2d"))(tokens)


def test_a_pattern_of_tokens_that_are_left_is_no_pattern_of_neighbours():
    selection = Selection(Packing.of([Place(4)]), torch.tensor([0, 3]))
    with pytest.raises(ValueError, match="positions of whole sequences"):
        Relation(pattern=Local(1), packing=Packing.of([Place(2)]), selection=selection)
