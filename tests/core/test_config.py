import math
from dataclasses import replace
from pathlib import Path

import pytest
from torch import nn

from core import EncoderConfig, UserError, from_dict, load, to_dict
from core.config import BelowOne, Real, Size, configclass


@configclass
class Inner:
    size: Size | tuple[Size, Size] = 3
    rate: Real | tuple[Real, ...] = 1.0
    dropout: BelowOne = 0.0


@configclass
class Outer:
    inner: Inner = Inner()
    deep: bool = False
    names: tuple[str, ...] = ()
    path: Path | None = None

    def __post_init__(self):
        if self.deep and not self.names:
            raise UserError("What is deep needs names.")


@pytest.mark.parametrize(
    "config", [Outer(), Outer(inner=Inner(size=(1, 2), rate=(1.0, 2.0)), names=("a",), path=Path("x/y"))]
)
def test_round_trip(config):
    assert from_dict(Outer, to_dict(config)) == config
    assert from_dict(Outer, config) is config


@pytest.mark.parametrize("data, named", [({"inner": {"sise": 1}}, "sise"), ({"inner": {"size": "big"}}, "inner.size")])
def test_a_wrong_field_or_type_is_named(data, named):
    with pytest.raises(UserError, match=named):
        from_dict(Outer, data)


@pytest.mark.parametrize(
    "values, problem",
    [
        ({"size": 0}, "Inner: size must be at least 1, not 0"),
        ({"size": (3, 0)}, r"Inner: size\[1\] must be at least 1, not 0"),
        ({"size": True}, "Inner: size must be a whole number, not True"),
        ({"size": "3"}, "Inner: size must be a whole number, not '3'"),
        ({"size": 3.0}, "Inner: size must be a whole number, not 3.0"),
        ({"rate": math.nan}, "Inner: rate must be a finite number, not nan"),
        ({"rate": "fast"}, "Inner: rate must be a number, not 'fast'"),
        ({"dropout": 1}, "Inner: dropout must be less than 1, not 1"),
        ({"width": 1}, "Inner: width is not a setting"),
    ],
)
def test_a_config_is_checked_however_it_is_made(values, problem):
    for make in (lambda: Inner(**values), lambda: replace(Inner(), **values), lambda: from_dict(Inner, values)):
        with pytest.raises(UserError if "width" not in values else (UserError, TypeError), match=problem[:5]):
            make()
    with pytest.raises(UserError, match=problem):
        Inner(**values)
    with pytest.raises(UserError, match=problem.replace("Inner: ", "Outer: inner.")):
        from_dict(Outer, {"inner": values})


def test_a_refusal_of_several_fields_together_keeps_its_sentence():
    for make in (lambda: Outer(deep=True), lambda: from_dict(Outer, {"deep": True})):
        with pytest.raises(UserError, match=r"^What is deep needs names\.$"):
            make()


def test_mistakes_are_caught_as_value_errors():
    for mistake in (
        lambda: Inner(size=0),
        lambda: Outer(deep=True),
        lambda: from_dict(Outer, {"wide": 1}),
        lambda: EncoderConfig(patterns="Local(0)"),
        lambda: load(nn.Linear(2, 2), {}),
    ):
        try:
            mistake()
        except ValueError as error:
            assert isinstance(error, UserError), error
        else:
            raise AssertionError("nothing was refused")


def test_numbers_keep_their_kind():
    assert isinstance(Inner(rate=2).rate, float) and isinstance(from_dict(Inner, {"rate": 2}).rate, float)
    with pytest.raises(UserError, match="deep must be true or false, not 'maybe'"):
        Outer(deep="maybe")
