"""The checks of an attention's dropout. See attention.py; those of encoders and models are in training.py."""

import torch

from .measures import Figures, close, require, seeded
from .subjects import AttentionSubject

DRAWS = 600
MOST_SIGMAS = 6.0  # standard errors by which the mean over them may be off
SAMPLES = 32
MOST_ALIKE = 0.75  # the share of neighbours that are dropped alike; half of them are if each is dropped by itself
AXES = {1: "heads", 2: "queries", 3: "keys"}


def dropout_of_zero_is_none(subject: AttentionSubject) -> Figures:
    """dropout=0.0 changes nothing."""
    qkv = subject.inputs()
    with seeded(0):
        return close(subject(*qkv, dropout=0.0), subject(*qkv), subject.tolerance, "output")


def dropout_is_unbiased(subject: AttentionSubject) -> Figures:
    """dropout=0.5 drops other weights for each sample, and its mean is the output without dropout."""
    qkv = subject.inputs(m=min(subject.length, 24))
    expected = subject(*qkv)[:1]
    with seeded(0), torch.no_grad():
        drawn = subject(*(tensor[:1].expand(DRAWS, -1, -1, -1) for tensor in qkv), dropout=0.5)
    require(bool((drawn[0] != drawn[1]).any()), "dropout=0.5 drops nothing, or the same of all samples")
    differences = (drawn.mean(0, keepdim=True) - expected).abs()
    sigmas = float((differences / (drawn.std(0, keepdim=True) / DRAWS**0.5 + 1e-12)).max())
    require(sigmas < MOST_SIGMAS, f"the mean of {DRAWS} draws is off by {sigmas:.1f} standard errors", sigmas=sigmas)
    return {"sigmas": sigmas}


def dropout_is_of_single_weights(subject: AttentionSubject) -> Figures:
    """dropout=0.5 makes each weight 0 or twice what it was, by itself, anew in each call, and alike at the same random
    state."""
    size = max(subject.head_dim // 2, 2)
    q, k, v = subject.inputs(size, size, batch=SAMPLES, head_dim=2 * size)
    v = torch.eye(size, dtype=v.dtype).repeat(1, 2).expand_as(v)  # the output is the weights, twice
    weights = subject(q, k, v)
    with seeded(0), torch.no_grad():
        first, next_one = subject(q, k, v, dropout=0.5), subject(q, k, v, dropout=0.5)
    with seeded(0), torch.no_grad():
        again = subject(q, k, v, dropout=0.5)
    close(again, first, 0.0, "output with dropout, at the same random state")
    close(first[..., :size], first[..., size:], subject.tolerance, "outputs by the same weights with dropout")
    large = weights > 100 * subject.tolerance
    dropped, dropped_next = (drawn.abs() <= subject.tolerance for drawn in (first, next_one))
    kept = (first - 2 * weights).abs() <= 2 * subject.tolerance
    require(bool((dropped | kept)[large].all()), "dropout=0.5 makes weights neither 0 nor twice what they were")
    shares = {"two calls": _alike(dropped, dropped_next, large)}
    for axis, what in AXES.items():
        if dropped.shape[axis] > 1:
            both = large & large.roll(1, axis)
            shares[f"neighbouring {what}"] = _alike(dropped, dropped.roll(1, axis), both)
    for what, share in shares.items():
        require(share <= MOST_ALIKE, f"in {what} {share:.0%} of the weights are dropped alike, not half", alike=share)
    return {"alike": max(shares.values())}


def _alike(dropped: torch.Tensor, others: torch.Tensor, where: torch.Tensor) -> float:
    return float((dropped == others)[where].double().mean())


def gradcheck_with_dropout(subject: AttentionSubject) -> Figures:
    """With dropout its gradients equal finite differences at the same random state, in fp64."""

    def drop(*qkv: torch.Tensor) -> torch.Tensor:
        with seeded(0):
            return subject(*qkv, dropout=0.5)

    qkv = subject.inputs(batch=1, learns=True, head_dim=4)
    torch.autograd.gradcheck(drop, qkv, fast_mode=True, atol=1e-7, rtol=1e-5)
    return {}
