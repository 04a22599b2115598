"""`pack`, `unpack` and `pad`."""

import inspect

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from core import Tokens
from core.attention.packing import Packing, Place
from core.encoder.pack import pack, pad, unpack
from core.errors import UserError


@st.composite
def batches(draw):
    """Sequences of one prefix, all with a grid or none, as they lie in a row, and where each is."""
    prefix, on_grid = draw(st.integers(0, 2)), draw(st.booleans())
    places = []
    for _ in range(draw(st.integers(1, 5))):
        if on_grid:
            grid = draw(st.integers(1, 4)), draw(st.integers(1, 4))
            places.append(Place(prefix + grid[0] * grid[1], prefix, grid))
        else:
            places.append(Place(prefix + draw(st.integers(0, 6)), prefix))
    packing = Packing.of(places)
    return Tokens(torch.randn(1, packing.total, 3), packing=packing)


@settings(max_examples=80, deadline=None)
@given(row=batches())
def test_padded_and_packed_again_a_row_is_what_it_was(row):
    for again in (pack(pad(row)), pack(unpack(row)), pack(row), pack([pad(row)])):
        assert torch.equal(again.x, row.x) and torch.equal(again.packing.places, row.packing.places)
    padded = pad(row)
    assert padded.x.shape[0] == len(row.packing) and padded.prefix == row.packing.places[0, 1]
    for sample, (tokens, place) in enumerate(zip(unpack(row), row.packing, strict=True)):
        assert (tokens.grid, tokens.prefix) == (place.grid, place.prefix)
        real = padded.x[sample] if padded.mask is None else padded.x[sample][padded.mask[sample]]
        assert torch.equal(real, tokens.x[0])
    if padded.mask is not None:
        assert (padded.x[~padded.mask] == 0).all() and not padded.mask.all()


def test_on_a_grid_a_sequence_lies_in_the_first_rows_and_columns():
    row = pack([Tokens(torch.ones(1, 5, 2), grid=(2, 2), prefix=1), Tokens(torch.ones(1, 4, 2), grid=(1, 3), prefix=1)])
    padded = pad(row)
    assert padded.grid == (2, 3) and padded.prefix == 1
    expected = torch.tensor([[[1, 1, 0], [1, 1, 0]], [[1, 1, 1], [0, 0, 0]]]).bool()
    assert torch.equal(padded.body_mask, expected.flatten(1))


def test_unpadded_batches_are_packed_without_a_look_at_their_numbers():
    batch = Tokens(torch.randn(3, 4, 2), grid=(2, 2))
    row = pack([batch, pack(batch)])
    assert list(row.packing) == [Place(4, 0, (2, 2))] * 6 and row.count == 6
    assert torch.equal(row.x[0, :12], row.x[0, 12:])
    assert pad(batch) is batch


@pytest.mark.parametrize("real", [[True, False, True], [False, True, True]])
def test_gaps_are_refused_as_tokens_behind_them_would_lose_their_positions(real):
    mask = torch.tensor([real, [False, False, False]])
    with pytest.raises(UserError, match="padding must be behind"):
        pack(Tokens(torch.arange(6.0).reshape(2, 3, 1), mask=mask))
    row = pack(Tokens(torch.arange(6.0).reshape(2, 3, 1), mask=mask.sort(descending=True).values))
    assert list(row.packing) == [Place(2), Place(0)]


def test_gradients_pass_through():
    x = torch.randn(2, 5, 3, requires_grad=True)
    mask = torch.arange(5) < torch.tensor([[5], [2]])
    weight = torch.randn(2, 5, 3)
    (pad(pack(Tokens(x, mask=mask))).x * weight).sum().backward()
    assert torch.equal(x.grad, weight.where(mask[..., None], 0))


X = torch.randn(2, 5, 3)


@pytest.mark.parametrize(
    "batches, problem",
    [
        ([], "there are no sequences"),
        ([Tokens(X), Tokens(torch.randn(1, 2, 4))], "sequences of 3 and 4 features cannot lie in one row"),
        (Tokens(X, mask=torch.arange(5).expand(2, -1) > 0, prefix=1), "must not be padding"),
        (
            Tokens(X[:, :4], mask=torch.tensor([[True, False, False, True]] * 2), grid=(2, 2)),
            "no smaller grid in the corner",
        ),
        (
            Tokens(X[:, :4], mask=torch.tensor([[False, True, False, True]] * 2), grid=(2, 2)),
            "no smaller grid in the corner",
        ),
    ],
)
def test_what_cannot_be_packed_is_said(batches, problem):
    with pytest.raises(UserError, match=problem):
        pack(batches)


@pytest.mark.parametrize("other", [Tokens(X[:, :4], grid=(2, 2)), Tokens(X, prefix=1)])
def test_sequences_of_different_kinds_cannot_be_one_batch(other):
    with pytest.raises(UserError, match="cannot be one batch"):
        pad(pack([Tokens(X), other]))


@pytest.mark.parametrize(
    "options, problem",
    [
        ({"mask": torch.ones(1, 5, dtype=torch.bool)}, "a packed row has no padding mask"),
        ({"prefix": 1}, "the packing says its prefixes and grids"),
        ({"grid": (1, 5)}, "the packing says its prefixes and grids"),
        ({"packing": Packing.of([Place(4)])}, "1 packed sequences of 4 tokens together lie in one row"),
        ({"x": X}, "not 2 rows of 5"),
    ],
)
def test_tokens_check_their_packing(options, problem):
    given = {"x": X[:1], "packing": Packing.of([Place(2), Place(3)])} | options
    with pytest.raises(UserError, match=problem):
        inspect.unwrap(Tokens)(**given)
