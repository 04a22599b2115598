from dataclasses import dataclass
from pathlib import Path

import pytest

from core import UserError, from_dict, to_dict


@dataclass(frozen=True, kw_only=True)
class Inner:
    size: int | tuple[int, int] = 3
    rate: float | tuple[float, ...] = 1.0


@dataclass(frozen=True, kw_only=True)
class Outer:
    inner: Inner = Inner()
    names: tuple[str, ...] = ()
    path: Path | None = None


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
