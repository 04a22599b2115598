"""Shapes are checked while tests run, wherever an annotation states one."""

from collections.abc import Callable, Sequence
from dataclasses import make_dataclass

import jaxtyping
import pytest
import torch
from beartype import beartype
from checked_shapes import has_shape
from jaxtyping import Float, TypeCheckError
from torch import Tensor

from core.encoder.tokens import Tokens


@pytest.mark.parametrize(
    "annotation, expected",
    [
        (Float[Tensor, "n"], True),
        (Float[Tensor, "n"] | None, True),
        (tuple[int, Sequence[Float[Tensor, "_"]]], True),
        (Callable[[Float[Tensor, "n"]], int], True),
        ("Float[Tensor, 'n']", True),
        (Sequence[int], False),
        (Callable[[int], str], False),
        (Tensor, False),
        (None, False),
    ],
)
def test_which_annotations_have_shapes(annotation, expected):
    assert has_shape(annotation) == expected


def test_shapes_of_functions_and_data_classes_are_checked():
    check = jaxtyping.jaxtyped(typechecker=beartype)

    def same(a: Float[Tensor, "n"], b: Float[Tensor, "n"]) -> None:
        pass

    def cut(a: Float[Tensor, "n"]) -> Float[Tensor, "n"]:
        return a[1:]

    def plain(a: int) -> None:
        pass

    pair = check(make_dataclass("Pair", [("a", Float[Tensor, "n"]), ("b", Float[Tensor, "n"])]))
    for checked in (check(same), pair):
        checked(torch.ones(3), torch.ones(3))
        with pytest.raises(TypeCheckError):
            checked(torch.ones(3), torch.ones(4))
    with pytest.raises(TypeCheckError):
        check(cut)(torch.ones(3))
    assert check(plain) is plain


def test_those_of_the_project_are_checked():
    with pytest.raises(TypeCheckError):
        Tokens(torch.ones(3))
    with pytest.raises(TypeCheckError):
        Tokens(torch.ones(2, 3, 4), mask=torch.ones(2, 4, dtype=torch.bool))
