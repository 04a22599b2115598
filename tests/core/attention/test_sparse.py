"""The sparse kernels against dense attention under `pattern.dense`, and the mask contract."""

import subprocess
import sys
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from processes import run_script
from sparse_cases import KERNELS, gradients, inputs, kernels, relation, sparse, worst
from torch.utils.checkpoint import checkpoint

from core import attend_reference
from core.sparse import Axial, Causal, Dilated, Global, Local, PowersOfTwo, Random, Window2d

lines = st.one_of(
    st.builds(Local, st.integers(1, 300), st.booleans()),
    st.builds(Dilated, st.integers(1, 150), st.integers(1, 90), st.booleans()),
    st.just(PowersOfTwo()),
    st.builds(Random, st.integers(1, 3), st.integers(0, 5)),
    st.just(Causal()),
)
grids = st.one_of(
    st.builds(Window2d, st.integers(1, 9), st.booleans()), st.builds(Axial, st.booleans()), st.just(PowersOfTwo())
)


@st.composite
def calls(draw):
    """A pattern or pair of patterns with Global perhaps, and a shape it fits."""
    on_grid = draw(st.booleans())
    one = draw(grids if on_grid else lines)
    if draw(st.booleans()):
        other = draw(grids if on_grid else lines)
        one = one | other if draw(st.booleans()) else one & other
    prefix = draw(st.integers(0, 5))
    if draw(st.booleans()):
        one = one | (Global() if on_grid else Global(draw(st.integers(1, 5))))
    grid = (draw(st.integers(1, 14)), draw(st.integers(1, 17))) if one.on_grid else None
    body = grid[0] * grid[1] if grid else draw(st.integers(1, 220))
    return one, prefix, grid, body + prefix


@settings(max_examples=500, deadline=None)
@given(call=calls(), data=st.data())
def test_equals_dense_attention(call, data):
    pattern, prefix, grid, n = call
    b, h, c = data.draw(st.sampled_from([(1, 1, 16), (2, 1, 24), (1, 3, 32), (2, 2, 64), (1, 1, 128)]))
    seed = data.draw(st.integers(0, 99))
    *qkv, upstream = inputs((b, h, n, c), seed)
    mask = torch.rand(b, n, generator=torch.Generator().manual_seed(seed)) > 0.3 if data.draw(st.booleans()) else None
    shape = data.draw(st.sampled_from([None, None, None, (1, h, n, n), (b, 1, 1, n), (1, 1, n, 1)]))
    bias = None if shape is None else torch.randn(shape, dtype=torch.float64)
    tensors = qkv if bias is None else [*qkv, bias]
    near = relation(pattern, prefix, grid, n)
    pairs = near if mask is None else near & mask[:, None, None]

    kernel = data.draw(st.sampled_from(KERNELS)) if bias is None else "blockwise"

    def ours(q, k, v, bias=None):
        how = {"pattern": pattern, "prefix": prefix, "grid": grid, "mask": mask, "bias": bias}
        return sparse(q, k, v, kernel=kernel, **how)

    def dense(q, k, v, bias=0.0):
        logits = (q @ k.mT / c**0.5 + bias).masked_fill(~pairs, -1e30)
        return logits.softmax(-1).where(pairs, 0) @ v

    expected = gradients(dense, tensors, upstream)
    assert worst(gradients(ours, tensors, upstream), expected) < 1e-10
    single = gradients(ours, [t.float() for t in tensors], upstream.float())
    assert worst(single, expected) < 2e-4


PATTERN = Local(40, exact=True) | PowersOfTwo() | Global(2)


@pytest.mark.parametrize("pattern", [PATTERN, Local(256), Local(64, exact=True) & Causal()], ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@kernels
def test_half_precision_error(pattern, dtype, kernel):
    """Output and gradients: at most twice the error of torch's dense attention of the same dtype."""
    *qkv, upstream = inputs((1, 2, 700, 32), 0, dtype)
    near = relation(pattern, 0, None, 700)
    exact = gradients(lambda q, k, v: attend_reference(q, k, v, near), [t.double() for t in qkv], upstream.double())
    plain = gradients(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, attn_mask=near), qkv, upstream)
    ours = gradients(lambda q, k, v: sparse(q, k, v, pattern=pattern, kernel=kernel), qkv, upstream)
    for mine, theirs, expected in zip((ours[0], *ours[1]), (plain[0], *plain[1]), (exact[0], *exact[1]), strict=True):
        assert (mine.double() - expected).abs().max() <= 2 * (theirs.double() - expected).abs().max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("pattern", [PATTERN, Local(100), Local(30, exact=True)], ids=str)
@kernels
def test_masked_never_leaks_and_lone_queries_are_zero(pattern, dtype, kernel):
    *qkv, upstream = inputs((2, 2, 300, 16), 0, dtype)
    mask = torch.ones(2, 300, dtype=torch.bool)
    mask[:, 250:] = False
    mask[1] = False
    dirty = [t.clone() for t in qkv]
    for tensor in dirty[1:]:
        tensor[:, :, 250:] = torch.nan
    found = gradients(lambda q, k, v: sparse(q, k, v, pattern=pattern, mask=mask, kernel=kernel), dirty, upstream)
    clean = gradients(lambda q, k, v: sparse(q, k, v, pattern=pattern, mask=mask, kernel=kernel), qkv, upstream)
    for a, b in zip((found[0], *found[1]), (clean[0], *clean[1]), strict=True):
        torch.testing.assert_close(a, b)
    assert (found[0][1] == 0).all() and all((g[1] == 0).all() for g in found[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@kernels
def test_nan_reaches_those_who_attend_to_it_and_nobody_else(dtype, kernel):
    q, k, v, _ = inputs((1, 1, 300, 16), 0, dtype)
    near = relation(Local(30, exact=True), 0, None, 300)[0, 0]
    clean = sparse(q, k, v, pattern=Local(30, exact=True), kernel=kernel)
    for spoil in (k, v):
        kept = spoil[:, :, 200].clone()
        spoil[:, :, 200] = torch.nan
        out = sparse(q, k, v, pattern=Local(30, exact=True), kernel=kernel)
        spoil[:, :, 200] = kept
        assert out[0, 0, near[:, 200]].isnan().all()
        torch.testing.assert_close(out[0, 0, ~near[:, 200]], clean[0, 0, ~near[:, 200]])


def test_gradcheck_with_bias():
    *qkv, _ = inputs((1, 1, 70, 4), 0)
    qkv = [t.requires_grad_() for t in qkv]
    bias = torch.randn(1, 1, 70, 70, dtype=torch.float64, requires_grad=True)
    mask = torch.rand(1, 70) > 0.2
    pattern = Local(20, exact=True) | Global(1)
    check = lambda q, k, v, bias: sparse(q, k, v, pattern=pattern, mask=mask, bias=bias)
    assert torch.autograd.gradcheck(check, (*qkv, bias), fast_mode=True)


@kernels
@pytest.mark.parametrize("pattern, grid", [(Local(20, exact=True) | Global(1), None), (Window2d(2), (9, 8))], ids=str)
def test_gradcheck(pattern, grid, kernel):
    *qkv, _ = inputs((1, 2, 74, 5), 0)
    mask = torch.rand(1, 74) > 0.2
    check = lambda q, k, v: sparse(q, k, v, pattern=pattern, prefix=2, grid=grid, mask=mask, kernel=kernel)
    assert torch.autograd.gradcheck(check, [t.requires_grad_() for t in qkv], fast_mode=True)


@kernels
def test_used_twice_in_one_graph(kernel):
    *qkv, upstream = inputs((1, 2, 200, 16), 0)
    near = relation(PATTERN, 0, None, 200)
    ours = partial(sparse, pattern=PATTERN, kernel=kernel)
    twice = gradients(lambda q, k, v: ours(q, k, ours(q, k, v)), qkv, upstream)
    dense = gradients(lambda q, k, v: attend_reference(q, k, attend_reference(q, k, v, near), near), qkv, upstream)
    assert worst(twice, dense) < 1e-10


@kernels
def test_dropout_is_unbiased_and_its_gradient_is_of_what_was_drawn(kernel):
    q, k, v, _ = inputs((1, 2, 90, 8), 0)
    drop = partial(sparse, pattern=PATTERN, dropout=0.4, kernel=kernel)
    torch.manual_seed(0)
    drawn = torch.stack([drop(q, k, v) for _ in range(150)])
    error = (drawn.mean(0) - sparse(q, k, v, pattern=PATTERN)).abs() / (drawn.std(0) / 150**0.5)
    assert (error < 6).all() and not torch.allclose(drawn[0], drawn[1])

    def drawn_alike(q, k, v):
        torch.manual_seed(1)
        return drop(q, k, v)

    assert torch.autograd.gradcheck(drawn_alike, [t.requires_grad_() for t in (q, k, v)], fast_mode=True)


@kernels
def test_dropout_of_equal_seeds_is_equal_and_a_recomputation_draws_it_again(kernel):
    q, k, v, upstream = inputs((1, 2, 90, 8), 0)
    drop = partial(sparse, pattern=PATTERN, dropout=0.4, kernel=kernel)
    results = []
    for function in (drop, drop, lambda *qkv: checkpoint(drop, *qkv, use_reentrant=False)):
        torch.manual_seed(3)
        results.append(gradients(function, (q, k, v), upstream))
    for other in results[1:]:
        assert worst(other, results[0]) == 0


@pytest.mark.parametrize("dropout", [0.1, 0.5, 0.9])
def test_native_dropout_drops_its_share(dropout):
    """With one-hot values the output is the weights themselves: as many are 0 as should be, in no pattern."""
    n = 256
    q, k = torch.randn(8, 8, n, 16), torch.randn(8, 8, n, 16)
    v = torch.eye(n).expand(8, 8, n, n)
    zeros = sparse(q, k, v, pattern=Local(2 * n), prefix=1, dropout=dropout, kernel="native") == 0
    spread = (dropout * (1 - dropout)) ** 0.5
    for dims in ((0, 1), (2,), (3,), (0, 1, 2, 3)):  # by pair, by key, by query, and over all
        share = zeros.double().mean(dim=dims)
        worst_share = (share - dropout).abs().max() / (spread / (zeros.numel() / share.numel()) ** 0.5)
        assert worst_share < 8 if share.numel() > 1 else worst_share < 4  # 64 draws a pair have a long tail


@kernels
def test_second_derivatives_are_refused(kernel):
    q, k, v, _ = (t.requires_grad_() for t in inputs((1, 1, 100, 16), 0))
    out = sparse(q, k, v, pattern=PATTERN, kernel=kernel)
    (grad,) = torch.autograd.grad(out.sum(), q, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        grad.sum().backward()


@pytest.mark.parametrize("layout", ["heads last", "expanded"])
def test_any_strides(layout):
    """As they come from a projection, or (a gradient) from a sum."""
    q, k, v, upstream = inputs((2, 3, 150, 16), 0)
    if layout == "heads last":
        q, k, v, upstream = (t.transpose(1, 2).contiguous().transpose(1, 2) for t in (q, k, v, upstream))
    else:
        upstream = torch.ones(()).double().expand(2, 3, 150, 16)
    near = relation(PATTERN, 0, None, 150)
    expected = gradients(lambda q, k, v: attend_reference(q, k, v, near), (q, k, v), upstream)
    for kernel in KERNELS:
        found = gradients(partial(sparse, pattern=PATTERN, kernel=kernel), (q, k, v), upstream)
        assert worst(found, expected) < 1e-10


def test_threads_do_not_change_the_result():
    *qkv, upstream = inputs((1, 1, 700, 16), 0)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            ours = partial(sparse, pattern=PATTERN, kernel="native")
            results.append(gradients(ours, qkv, upstream))
    finally:
        torch.set_num_threads(before)
    assert worst(results[1], results[0]) < 1e-13 and worst(results[2], results[0]) < 1e-13


COMPILED = """
import torch
from core import Encoder, EncoderConfig, Tokens
from core.sparse import Local, Global, PowersOfTwo
torch.manual_seed(0)
patterns = (Local(64), PowersOfTwo() | Global(1))
model = Encoder(EncoderConfig(dim=32, depth=2, heads=2, patterns=patterns))
mask = torch.ones(2, 1700, dtype=torch.bool)
mask[0, 900:] = False
for length in (1100, 300, 1500, 1700):
    tokens = Tokens(torch.randn(2, length, 32), mask=mask[:, :length])
    results = []
    for run in (model, torch.compile(model, fullgraph=True, backend="aot_eager")):
        model.zero_grad()
        out = run(tokens).x  # a compiled one: for any length at once from the third on
        out.square().sum().backward()
        results.append([out, *(p.grad.clone() for p in model.parameters())])
    for a, b in zip(*results):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)
config = EncoderConfig(dim=32, depth=1, heads=2, patterns=patterns, attention_dropout=0.5)
model = torch.compile(Encoder(config), fullgraph=True, backend="aot_eager")
tokens = Tokens(torch.randn(1, 700, 32))
first, second = model(tokens).x, model(tokens).x
assert not torch.allclose(first, second)
second.sum().backward()
"""


def test_torch_compile_keeps_one_graph(tmp_path):
    run_script(COMPILED, tmp_path)


OUT_OF_MEMORY = """
import re
import resource
from pathlib import Path

import torch

from core.sparse import Local, make_plan, native
from core.sparse.call import KernelCall

c = 100_000  # features, of which each thread keeps those of a block of queries: 25 MB a copy
q = torch.zeros(1, 1, 1, c)
plan = make_plan(Local(64), 1)
native.why_not()
used = 1024 * int(re.search(r"VmData:\s+(\d+)", Path("/proc/self/status").read_text())[1])
resource.setrlimit(resource.RLIMIT_DATA, (used + 2**23, -1))
try:
    native.forward(KernelCall(q, q, q, plan, scale=1.0))
except MemoryError as error:
    print(error)
"""


def test_running_out_of_memory_in_the_kernel_is_an_error():
    """Not the end of the process, as an exception that leaves a parallel region is."""
    done = subprocess.run([sys.executable, "-c", OUT_OF_MEMORY], capture_output=True, text=True)
    assert "not enough memory for attention with heads of 100000 features" in done.stdout, done.stderr
