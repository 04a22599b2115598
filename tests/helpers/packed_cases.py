"""Rows of several sequences, and attention in each of them alone."""

import torch
from hypothesis import strategies as st

from core import attend, attend_reference, attention_backend
from core.attention.packing import Packing, Place
from core.sparse import Axial, Causal, Global, Local, PowersOfTwo, Window2d

LINES = [
    None,
    Local(16),
    Local(5, exact=True),
    Local(16) | Global(1),
    PowersOfTwo() | Global(1),
    Causal(),
    Local(20, exact=True) & Causal(),
]
GRIDS = [Window2d(2), Window2d(3, exact=True), Axial(), PowersOfTwo() | Window2d(1)]
LENGTHS = (0, 1, 1, 2, 3, 7, 20, 63, 64, 65, 70, 130)
BACKENDS = (None, "native", "blockwise", "dense", "reference")


@st.composite
def rows(draw, on_grid=False, most=4, least=0):
    """A packing of sequences; one of the first tokens' places is 0, 1 or 3 prefix tokens."""
    places = []
    for _ in range(draw(st.integers(least, most))):
        prefix = draw(st.sampled_from((0, 0, 1, 3)))
        if on_grid:
            grid = draw(st.integers(1, 9)), draw(st.integers(1, 9))
            places.append(Place(prefix + grid[0] * grid[1], prefix, grid))
        else:
            length = draw(st.sampled_from(LENGTHS))
            places.append(Place(length, min(prefix, length)))
    return Packing.of(places)


@st.composite
def calls(draw):
    """A pattern (or none) and a row of sequences that it fits."""
    pattern = draw(st.sampled_from([*LINES, *GRIDS]))
    return pattern, draw(rows(pattern is not None and pattern.on_grid))


def inputs(packing, key_packing=None, heads=2, c=8, e=8, dtype=torch.float64, seed=0):
    """Queries, keys, values, and the gradient of the output."""
    generator = torch.Generator().manual_seed(seed)
    n, m = packing.total, (key_packing or packing).total
    shapes = ((n, c), (m, c), (m, e), (n, e))
    return [torch.randn(1, heads, *shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes]


def parts(packing):
    """Where each sequence is in the row."""
    return [slice(start, start + length) for start, length in zip(packing.starts, packing.lengths, strict=True)]


def near(pattern, place):
    """The pairs of a sequence that a pattern keeps; None for all."""
    return (
        None if pattern is None else pattern.dense(place.grid or place.length - place.prefix, place.prefix)[None, None]
    )


def with_gradients(function, tensors, upstream):
    tensors = [t.detach().requires_grad_() for t in tensors]
    out = function(*tensors)
    return [out.detach(), *torch.autograd.grad(out, tensors, upstream)]


def alone(tensors, upstream, packing, key_packing=None, pattern=None, bias=None, scale=None):
    """Output and gradients of each sequence by itself, by the reference, put side by side."""
    found = []
    queries, keys = parts(packing), parts(key_packing or packing)
    for number, place in enumerate(packing):
        q, k, v = (t[:, :, own[number]] for t, own in zip(tensors, (queries, keys, keys), strict=True))
        allowed, added = near(pattern, place), None if bias is None else bias[number]

        def reference(q, k, v, allowed=allowed, added=added):
            return attend_reference(q, k, v, allowed, added, scale)

        found.append(with_gradients(reference, (q, k, v), upstream[:, :, queries[number]]))
    if not found:
        return [torch.zeros_like(t) for t in (upstream, *tensors)]
    return [torch.cat(each, dim=2) for each in zip(*found, strict=True)]


def together(tensors, upstream, packing, backend=None, attention=attend, **options):
    """Output and gradients of `attend` on the row."""

    def in_row(q, k, v):
        if backend is None:
            return attention(q, k, v, packing=packing, **options)
        with attention_backend(backend):
            return attention(q, k, v, packing=packing, **options)

    return with_gradients(in_row, tensors, upstream)


def serves(backend, packing, pattern=None, bias=None, key_packing=None):
    """Whether a backend can be forced to compute a row."""
    if backend in (None, "dense", "reference"):
        return True
    keys = (key_packing or packing).total
    if not packing.total or not keys or (backend == "native" and bias is not None):
        return False
    return pattern is not None or backend == "native"


def worst(found, expected):
    """The largest difference of output and gradients, relative to the largest entry of each (or to 1)."""
    return max(
        ((a.double() - b.double()).abs().max() / b.double().abs().max().clamp(min=1)).item() if a.numel() else 0.0
        for a, b in zip(found, expected, strict=True)
    )
