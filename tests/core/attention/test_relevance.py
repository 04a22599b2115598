"""Attention weighted by gradients: what autograd gives by definition, whichever backend computed the output."""

import pytest
import torch

from core.attention import (
    attend,
    attention_backend,
    gradient_weighted,
    output_gradients,
    record_attention,
    relevance,
    weight_gradients,
)
from core.sparse import Local


@pytest.mark.parametrize("backend", ["dense", "native", "blockwise", "reference"])
def test_gradients_by_weights_are_those_of_autograd(backend):
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 2, 70, 4, dtype=torch.float64) for _ in range(3))
    direction = torch.randn(2, 70, 4, dtype=torch.float64)
    with attention_backend(backend), record_attention(values=True) as calls:
        out = attend(q, k, v, pattern=Local(8, exact=True))  # the model is frozen: nothing needs a gradient
    score = (out[0].tanh() * direction).sum()
    weights = calls[0].weights.requires_grad_()
    (wanted,) = torch.autograd.grad((((weights @ v)[0]).tanh() * direction).sum(), weights)
    (gradient,) = output_gradients(score, calls)
    allowed = calls[0].allowed.expand_as(wanted)
    torch.testing.assert_close(weight_gradients(calls[0], gradient)[allowed], wanted[allowed])
    found = gradient_weighted(calls[0], gradient)
    torch.testing.assert_close(found, (wanted * weights).clamp(min=0))
    assert 0 < (found > 0).sum() < allowed.sum()


def test_relevance_is_the_update_rule():
    """Equation 6 multiplied out: the identity, each layer, and all products of later with earlier layers."""
    a, b, c = (torch.rand(3, 2, 5, 5, generator=torch.Generator().manual_seed(seed)) for seed in range(3))
    one, two, three = (layer.mean(dim=1) for layer in (a, b, c))
    identity = torch.eye(5)
    wanted = identity + one + two + three + two @ one + three @ one + three @ two + three @ two @ one
    torch.testing.assert_close(relevance([a, b, c]), wanted)


def test_values_are_kept_only_if_asked_for():
    q = torch.randn(1, 1, 3, 4)
    with record_attention() as calls:
        attend(q, q, q)
    assert calls[0].v is None and calls[0].out is None
    with pytest.raises(ValueError, match="record_attention\\(values=True\\)"):
        output_gradients(torch.zeros(()), calls)


def test_a_head_of_a_call_has_that_heads_weights():
    torch.manual_seed(0)
    q, k = torch.randn(2, 3, 5, 4), torch.randn(2, 3, 5, 4)
    mask = torch.rand(2, 3, 5, 5) > 0.3
    with record_attention(values=True) as calls:
        attend(q, k, k, mask=mask, bias=torch.randn(1, 3, 5, 5))
    for head in range(3):
        torch.testing.assert_close(calls[0].of_head(head).weights, calls[0].weights[:, head : head + 1])
        assert calls[0].of_head(head).v.shape == (2, 1, 5, 4)
