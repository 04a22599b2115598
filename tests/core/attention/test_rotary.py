"""Rotary positions in C++: derivatives of every kind, as torch's operators have them."""

import pytest
import torch

from core.attention.rotary import rotate, turns
from core.sparse.turns import FEW, serves, turned_by_operators


@pytest.fixture
def features():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 4, 300, 32, generator=generator)
    table = turns(torch.randn(300, 16, generator=generator))
    assert x.numel() >= FEW and serves(x, *table)
    return x, table, torch.randn(x.shape, generator=generator)


def by_rotate(table):
    return lambda x: rotate(x, table)


def by_operators(table):
    return lambda x: turned_by_operators(x, *table)


def test_the_other_way_round_is_the_transpose(features):
    x, (cos, sin), y = features
    there, back = turned_by_operators(x, cos, sin), turned_by_operators(y, cos, sin, back=True)
    assert torch.allclose((there * y).sum(), (x * back).sum(), rtol=1e-4)


@pytest.mark.parametrize(
    "derivative",
    [
        lambda by, x, y: torch.func.jvp(by, (x,), (y,)),
        lambda by, x, y: torch.func.grad(lambda x: (by(x) ** 3).sum())(x),
        lambda by, x, y: torch.func.vmap(by)(torch.stack([x, y])),
        lambda by, x, y: torch.autograd.functional.jvp(by, x, y),  # a second derivative
        lambda by, x, y: torch.autograd.functional.vhp(lambda x: (by(x) ** 3).sum(), x, y),
    ],
    ids=["forward mode", "torch.func", "vmap", "double backward", "second"],
)
def test_other_derivatives(features, derivative):
    x, table, y = features
    found, wanted = (derivative(by(table), x, y) for by in (by_rotate, by_operators))
    for one, other in zip(
        *((each,) if isinstance(each, torch.Tensor) else each for each in (found, wanted)), strict=True
    ):
        assert torch.allclose(one, other, rtol=1e-5, atol=1e-6)


def test_a_batch_of_gradients(features):
    x, table, y = features
    found, wanted = (
        torch.autograd.grad(by(table)(given), given, torch.stack([y, 2 * y]), is_grads_batched=True)[0]
        for by in (by_rotate, by_operators)
        for given in [x.clone().requires_grad_()]
    )
    assert torch.equal(found, wanted)


def test_a_learned_table_learns(features):
    x, (cos, sin), y = features
    table = cos.requires_grad_(), sin.requires_grad_()
    assert not serves(x, *table)
    assert all(grad.abs().max() > 0 for grad in torch.autograd.grad(rotate(x, table), table, y))


def test_tables_of_other_numbers_and_shapes(features):
    x, (cos, sin), _ = features
    for table in (
        (cos.double(), sin.double()),
        (cos[..., None, :, :].expand(2, 1, -1, -1),) * 2,
        (cos.T.contiguous().T, sin),
    ):
        assert not serves(x, *table)
        assert torch.equal(rotate(x, table), turned_by_operators(x, *table))
