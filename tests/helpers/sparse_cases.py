"""Inputs for sparse attention, and what its results are compared with."""

import pytest
import torch

from core.attention.call import make_call
from core.attention.sparse import attend_sparse

KERNELS = ("blockwise", "native")
kernels = pytest.mark.parametrize("kernel", KERNELS)


def sparse(q, k, v, kernel="blockwise", **options):
    """`attend` by a sparse kernel."""
    return attend_sparse(make_call(q, k, v, **options), kernel)


def inputs(shape, seed, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for _ in range(4)]


def relation(pattern, prefix, grid, n):
    return pattern.dense(grid or n - prefix, prefix)[None, None]


def gradients(function, tensors, upstream):
    tensors = [t.detach().clone().requires_grad_() for t in tensors]
    out = function(*tensors)
    return out, torch.autograd.grad(out, tensors, upstream)


def worst(found, expected):
    """Largest difference of output and gradients, relative to the largest entry of each."""
    pairs = zip((found[0], *found[1]), (expected[0], *expected[1]), strict=True)
    return max(((a.double() - b.double()).abs().max() / b.double().abs().max().clamp(min=1)).item() for a, b in pairs)
