"""What dense attention counts on in torch."""

import torch

from core.private_torch import flash_for_cpu as flash
from core.private_torch import flash_for_cpu_backward as flash_backward


def test_the_private_operator_is_still_what_it_was():
    """torch's CPU flash kernel: takes strided 4-D input and a broadcast mask, gives out and log-sum-exp."""
    torch.manual_seed(0)
    q, k, v, grad = (torch.randn(2, 3, 10, 16) for _ in range(4))
    mask = torch.zeros(1, 1, 10, 10).masked_fill(torch.rand(10, 10) > 0.7, -torch.inf)
    mask[..., 0] = 0
    out, lse = flash(q, k, v, 0.0, False, attn_mask=mask, scale=0.3)
    logits = q @ k.mT * 0.3 + mask
    torch.testing.assert_close(lse, logits.logsumexp(-1))
    torch.testing.assert_close(out, logits.softmax(-1) @ v)
    dq, dk, dv = flash_backward(grad, q, k, v, out, lse, 0.0, False, attn_mask=mask, scale=0.3)
    torch.testing.assert_close(dv, logits.softmax(-1).mT @ grad)
    assert dq.shape == q.shape and dk.shape == k.shape
