"""The blockwise kernel against dense attention under `pattern.dense`, and the mask contract."""

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from core import attend, attend_reference, attention_backend, record_attention
from core.dense import flash, flash_backward
from core.sparse import Axial, Causal, Dilated, Global, Local, PowersOfTwo, Random, Window2d
from core.sparse.blockwise import attend_blockwise

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


@settings(max_examples=100, deadline=None)
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

    def sparse(q, k, v, bias=None):
        return attend_blockwise(q, k, v, pattern, prefix, grid, mask, bias)

    def dense(q, k, v, bias=0.0):
        logits = (q @ k.mT / c**0.5 + bias).masked_fill(~pairs, -1e30)
        return logits.softmax(-1).where(pairs, 0) @ v

    expected = gradients(dense, tensors, upstream)
    assert worst(gradients(sparse, tensors, upstream), expected) < 1e-10
    single = gradients(sparse, [t.float() for t in tensors], upstream.float())  # the fused kernel, where it serves
    assert worst(single, expected) < 2e-4


PATTERN = Local(40, exact=True) | PowersOfTwo() | Global(2)


@pytest.mark.parametrize("pattern", [PATTERN, Local(256), Local(64, exact=True) & Causal()], ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_error(pattern, dtype):
    """Output and gradients: at most twice the error of torch's dense attention of the same dtype."""
    *qkv, upstream = inputs((1, 2, 700, 32), 0, dtype)
    near = relation(pattern, 0, None, 700)
    exact = gradients(lambda q, k, v: attend_reference(q, k, v, near), [t.double() for t in qkv], upstream.double())
    plain = gradients(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, attn_mask=near), qkv, upstream)
    ours = gradients(lambda q, k, v: attend_blockwise(q, k, v, pattern), qkv, upstream)
    for mine, theirs, truth in zip((ours[0], *ours[1]), (plain[0], *plain[1]), (exact[0], *exact[1]), strict=True):
        assert (mine.double() - truth).abs().max() <= 2 * (theirs.double() - truth).abs().max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("pattern", [PATTERN, Local(100), Local(30, exact=True)], ids=str)
def test_masked_never_leaks_and_lone_queries_are_zero(pattern, dtype):
    *qkv, upstream = inputs((2, 2, 300, 16), 0, dtype)
    mask = torch.ones(2, 300, dtype=torch.bool)
    mask[:, 250:] = False
    mask[1] = False
    dirty = [t.clone() for t in qkv]
    for tensor in dirty[1:]:
        tensor[:, :, 250:] = torch.nan
    found = gradients(lambda q, k, v: attend_blockwise(q, k, v, pattern, mask=mask), dirty, upstream)
    clean = gradients(lambda q, k, v: attend_blockwise(q, k, v, pattern, mask=mask), qkv, upstream)
    for a, b in zip((found[0], *found[1]), (clean[0], *clean[1]), strict=True):
        torch.testing.assert_close(a, b)
    assert (found[0][1] == 0).all() and all((g[1] == 0).all() for g in found[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_nan_reaches_those_who_attend_to_it_and_nobody_else(dtype):
    q, k, v, _ = inputs((1, 1, 300, 16), 0, dtype)
    near = relation(Local(30, exact=True), 0, None, 300)[0, 0]
    clean = attend_blockwise(q, k, v, Local(30, exact=True))
    for spoil in (k, v):
        kept = spoil[:, :, 200].clone()
        spoil[:, :, 200] = torch.nan
        out = attend_blockwise(q, k, v, Local(30, exact=True))
        spoil[:, :, 200] = kept
        assert out[0, 0, near[:, 200]].isnan().all()
        torch.testing.assert_close(out[0, 0, ~near[:, 200]], clean[0, 0, ~near[:, 200]])


def test_gradcheck():
    *qkv, _ = inputs((1, 1, 70, 4), 0)
    qkv = [t.requires_grad_() for t in qkv]
    bias = torch.randn(1, 1, 70, 70, dtype=torch.float64, requires_grad=True)
    mask = torch.rand(1, 70) > 0.2
    check = lambda q, k, v, bias: attend_blockwise(q, k, v, Local(20, exact=True) | Global(1), 0, None, mask, bias)
    assert torch.autograd.gradcheck(check, (*qkv, bias), fast_mode=True)


def test_used_twice_in_one_graph():
    *qkv, upstream = inputs((1, 2, 200, 16), 0)
    near = relation(PATTERN, 0, None, 200)
    twice = gradients(
        lambda q, k, v: attend_blockwise(q, k, attend_blockwise(q, k, v, PATTERN), PATTERN), qkv, upstream
    )
    dense = gradients(lambda q, k, v: attend_reference(q, k, attend_reference(q, k, v, near), near), qkv, upstream)
    assert worst(twice, dense) < 1e-10


def test_dropout_is_unbiased_and_its_gradient_is_of_what_was_drawn():
    q, k, v, upstream = inputs((1, 1, 90, 8), 0)
    v.requires_grad_()
    torch.manual_seed(0)
    drawn = torch.stack([attend_blockwise(q, k, v, PATTERN, dropout=0.4).detach() for _ in range(150)])
    exact = attend_blockwise(q, k, v, PATTERN).detach()
    error = (drawn.mean(0) - exact).abs() / (drawn.std(0) / 150**0.5)
    assert (error < 6).all() and not torch.allclose(drawn[0], drawn[1])
    out = attend_blockwise(q, k, v, PATTERN, dropout=0.4)  # linear in v: the gradient must reproduce it
    (grad,) = torch.autograd.grad(out, v, upstream)
    torch.testing.assert_close((grad * v).sum(), (out * upstream).sum())


def test_attend_chooses_and_can_be_forced():
    short, long = inputs((1, 1, 128, 16), 0), inputs((1, 1, 2048, 16), 0)
    with record_attention() as calls:
        attend(*short[:3], pattern=Local(64))
        attend(*long[:3], pattern=Local(64))
        attend(*long[:3])
        with attention_backend("blockwise"):
            forced = attend(*short[:3], pattern=Local(64))
    assert [call.backend for call in calls] == ["dense", "blockwise", "dense", "blockwise"]
    torch.testing.assert_close(forced, attend(*short[:3], pattern=Local(64)))
    assert (calls[1].weights[0, 0][~Local(64).dense(2048)] == 0).all()
    with attention_backend("blockwise"), pytest.raises(ValueError, match="blockwise backend cannot serve this call"):
        attend(*short[:3])


def test_the_private_operator_is_still_what_it_was():
    """torch's CPU flash kernel: takes strided 4-D input and a broadcast mask, gives out and log-sum-exp."""
    q, k, v, grad = inputs((2, 3, 10, 16), 0, torch.float32)
    mask = torch.zeros(1, 1, 10, 10).masked_fill(torch.rand(10, 10) > 0.7, -torch.inf)
    mask[..., 0] = 0
    out, lse = flash(q, k, v, 0.0, False, attn_mask=mask, scale=0.3)
    logits = q @ k.mT * 0.3 + mask
    torch.testing.assert_close(lse, logits.logsumexp(-1))
    torch.testing.assert_close(out, logits.softmax(-1) @ v)
    dq, dk, dv = flash_backward(grad, q, k, v, out, lse, 0.0, False, attn_mask=mask, scale=0.3)
    torch.testing.assert_close(dv, logits.softmax(-1).mT @ grad)
    assert dq.shape == q.shape and dk.shape == k.shape


COMPILED = """
import torch
from core import Encoder, EncoderConfig, Tokens
from core.sparse import Local, Global, PowersOfTwo
torch.manual_seed(0)
patterns = (Local(64), PowersOfTwo() | Global(1))
model = Encoder(EncoderConfig(dim=32, depth=2, heads=2, patterns=patterns))
mask = torch.ones(2, 1100, dtype=torch.bool)
mask[0, 900:] = False
for length in (1100, 300):
    tokens = Tokens(torch.randn(2, length, 32), mask=mask[:, :length])
    results = []
    for run in (model, torch.compile(model, fullgraph=True, backend="aot_eager")):
        model.zero_grad()
        out = run(tokens).x
        out.square().sum().backward()
        results.append([out, *(p.grad.clone() for p in model.parameters())])
    for a, b in zip(*results):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)
"""


def test_torch_compile_keeps_one_graph():
    done = subprocess.run([sys.executable, "-c", COMPILED], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
