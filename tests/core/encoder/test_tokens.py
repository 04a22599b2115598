"""What is no batch of tokens is refused by a sentence, before it gives a wrong result or an error deep inside."""

import inspect

import pytest
import torch

from core import Encoder, EncoderConfig, Tokens, UserError
from core.attention.packing import Packing, Place

X = torch.randn(2, 4, 8)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"x": X[0]}, "x must be features"),
        ({"x": X.long()}, "x must be features"),
        ({"x": [1.0]}, "not a list"),
        ({"x": X, "mask": torch.ones(2, 4)}, "the mask must be boolean"),
        ({"x": X, "mask": torch.ones(2, 1, dtype=torch.bool)}, r"of shape \(2, 4\)"),
        ({"x": X, "mask": torch.ones(4, dtype=torch.bool)}, r"of shape \(2, 4\)"),
        ({"x": X, "prefix": 5}, "a number from 0 to 4"),
        ({"x": X, "prefix": 1.0}, "a number from 0 to 4"),
        ({"x": X, "prefix": -1}, "a number from 0 to 4"),
        ({"x": X, "grid": (2, 2, 1)}, r"grid must be \(rows, columns\), whole numbers"),
        ({"x": X, "grid": (-2, -2)}, "grid must be"),
        ({"x": X, "grid": (2.0, 2.0)}, "grid must be"),
    ],
)
def test_tokens(given, said):
    """Without what makes them: it checks shapes while tests run, and would be the first to refuse these."""
    tokens = object.__new__(Tokens)
    for name, value in ({"mask": None, "prefix": 0, "grid": None} | given).items():
        object.__setattr__(tokens, name, value)
    with pytest.raises(UserError, match=said):
        inspect.unwrap(Tokens._check)(tokens)


def test_tokens_check_themselves():
    with pytest.raises(UserError, match="a number from 0 to 4"):
        Tokens(X, prefix=5)


def test_an_encoder_takes_tokens():
    with pytest.raises(UserError, match="it takes Tokens"):
        inspect.unwrap(Encoder._run)(Encoder(EncoderConfig(dim=8, depth=1, heads=2)), X, None, {0}, True)


@pytest.mark.parametrize("places", [[3, 5], [Place(3.7)], [Place(3, 0.0)]])
def test_places(places):
    with pytest.raises(UserError, match=r"Packing\.of"):
        inspect.unwrap(Packing.of.__func__)(Packing, places)
