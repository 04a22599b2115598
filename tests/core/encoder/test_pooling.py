import inspect

import pytest
import torch

from core import AttentionPool, EncoderConfig, Tokens, UserError, pool
from core.encoder.pack import pack


@pytest.mark.parametrize("how", ["cls", "mean", "max", "last", "attention"])
def test_padding_never_counts(how):
    torch.manual_seed(0)
    pooled = AttentionPool(EncoderConfig(dim=8, heads=2)).eval() if how == "attention" else lambda t: pool(t, how)
    x = torch.randn(2, 7, 8) - 5  # a padding of 0 would win the maximum
    mask = torch.tensor([[True] * 5 + [False] * 2, [True] * 7])
    together = pooled(Tokens(x.where(mask[..., None], 100), mask=mask, prefix=1))
    torch.testing.assert_close(together[:1], pooled(Tokens(x[:1, :5], prefix=1)))
    torch.testing.assert_close(together[1:], pooled(Tokens(x[1:], prefix=1)))


@pytest.mark.parametrize("how", ["cls", "mean", "max", "last", "attention", "cls_mean"])
def test_padding_on_the_left_never_counts(how):
    torch.manual_seed(0)
    pooled = AttentionPool(EncoderConfig(dim=8, heads=2)).eval() if how == "attention" else lambda t: pool(t, how)
    x, mask = torch.randn(2, 7, 8) - 5, torch.tensor([[False] * 2 + [True] * 5, [True] * 7])
    together = pooled(Tokens(x.where(mask[..., None], 100), mask=mask))
    torch.testing.assert_close(together, torch.cat([pooled(Tokens(x[:1, 2:])), pooled(Tokens(x[1:]))]))


def test_the_prefix_is_not_in_the_body():
    x = torch.zeros(1, 4, 2)
    x[:, 0] = 9
    assert (pool(Tokens(x, prefix=1), "mean") == 0).all() and (pool(Tokens(x, prefix=1), "max") == 0).all()
    assert (pool(Tokens(x, prefix=1), "cls") == 9).all()


@pytest.mark.parametrize("how", ["mean", "max", "last"])
def test_nothing_real_gives_zero_with_finite_gradients(how):
    x = torch.randn(1, 3, 2, requires_grad=True)
    out = pool(Tokens(x, mask=torch.zeros(1, 3, dtype=torch.bool)), how)
    assert (out == 0).all()
    out.sum().backward()
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("how", ["average", "MEAN", None])
def test_another_word_is_refused_alone_and_packed(how):
    for tokens in (Tokens(torch.randn(2, 4, 8)), pack(Tokens(torch.randn(2, 4, 8)))):
        with pytest.raises(UserError, match="is not a way to pool; they are cls, prefix, mean"):
            inspect.unwrap(pool)(tokens, how)


def test_there_is_no_mean_of_a_prefix_without_tokens():
    for tokens in (Tokens(torch.randn(2, 4, 8)), pack(Tokens(torch.randn(2, 4, 8)))):
        with pytest.raises(UserError, match="prefix tokens, which"):
            pool(tokens, "prefix")
