"""What is wrong with a packed row is said in a sentence."""

import pytest
import torch

from core import UserError, attend
from core.attention.packing import Packing, Place
from core.sparse import Local, Window2d

TWO = Packing.of([Place(3), Place(4, 1)])
ON_GRID = Packing.of([Place(3, 0, (1, 3)), Place(4, 0, (2, 2))])


@pytest.mark.usefixtures("as_in_production")
@pytest.mark.parametrize(
    "options, problem",
    [
        ({"packing": [3, 4]}, "packing must be a Packing, not list"),
        ({"key_packing": TWO}, "packing must be a Packing, not NoneType"),
        ({"packing": TWO, "key_packing": [3, 4]}, "key_packing must be a Packing, not list"),
        ({"packing": TWO, "batch": 2}, "packed sequences lie in one row, but there are 2"),
        ({"packing": TWO, "length": 8}, "the 2 sequences of packing have 7 tokens together, but the row has 8"),
        (
            {"packing": TWO, "key_packing": Packing.of([Place(8)])},
            "key_packing have 8 tokens together, but the row has 7",
        ),
        ({"packing": TWO, "key_packing": Packing.of([Place(7)])}, "2 sequences of queries cannot attend to 1 of keys"),
        ({"packing": TWO, "mask": torch.ones(1, 7, dtype=torch.bool)}, "leave out the mask"),
        ({"packing": TWO, "prefix": 1}, "the packing says which prefix and grid"),
        ({"packing": TWO, "grid": (1, 7)}, "the packing says which prefix and grid"),
        ({"packing": TWO, "pattern": "Local(3)"}, "pattern must be a Pattern"),
        ({"packing": TWO, "pattern": Window2d(2)}, "grid"),
        ({"packing": ON_GRID, "key_packing": TWO, "pattern": Local(3)}, "A grid relates a sequence to itself"),
        ({"packing": TWO, "bias": torch.zeros(1, 1, 7, 7)}, "packed sequences need a bias each, 2 tensors"),
        ({"packing": TWO, "bias": [torch.zeros(1, 1, 3, 3)]}, "packed sequences need a bias each, 2 tensors"),
        ({"packing": TWO, "bias": [torch.zeros(1, 1, 3, 3)] * 2}, r"bias of shape \(1, 1, 3, 3\) does not broadcast"),
        ({"packing": TWO, "bias": [None, None]}, "bias must be a tensor"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else "",
)
def test_what_is_wrong_with_a_row_is_said(options, problem):
    t = torch.randn(options.pop("batch", 1), 2, options.pop("length", 7), 4)
    with pytest.raises((ValueError, UserError), match=problem):
        attend(t, t, t, **options)


@pytest.mark.usefixtures("as_in_production")
@pytest.mark.parametrize(
    "places, problem",
    [
        ([[3, 0, 0, 0]], "must be a tensor, not list"),
        (
            torch.tensor([[3.0, 0, 0, 0]]),
            r"64-bit integers on the CPU, four for each sequence, not \(1, 4\) torch.float32",
        ),
        (torch.tensor([3, 0, 0, 0]), "four for each sequence"),
        (torch.tensor([[3, 0, 0]]), "four for each sequence"),
        (torch.tensor([[3, 0, 0, 0]], device="meta"), "on the CPU"),
        (torch.tensor([[3, 4, 0, 0]]), "4 prefix tokens do not make the 3 tokens of sequence 0"),
        (torch.tensor([[3, 0, 0, 0], [-1, 0, 0, 0]]), "do not make the -1 tokens of sequence 1"),
        (torch.tensor([[7, 1, 2, 2]]), "1 prefix tokens and a grid of 2 x 2 do not make the 7 tokens"),
        (torch.tensor([[4, 0, -2, -2]]), "a grid of -2 x -2 do not make the 4 tokens"),
        (torch.tensor([[0, 0, 3, 0]]), "a grid of 3 x 0 do not make the 0 tokens"),
        (torch.tensor([[2**31, 0, 0, 0]]), "do not make the 2147483648 tokens"),
    ],
    ids=str,
)
def test_places_that_cannot_be_are_refused(places, problem):
    with pytest.raises(ValueError, match=problem):
        Packing(places)
