"""FlexAttention's kernels on a CUDA device under the whole mask contract, in batches and in rows of sequences."""

import pytest
import torch
import torch.nn.functional as F

from core import attend, attend_reference, attention_backend, explain, record_attention
from core.attention import flex
from core.attention.packing import Packing, Place
from core.sparse import Axial, Causal, Global, Local, Pattern, PowersOfTwo, Window2d

DEVICE = "cuda"
ERRORS = {torch.float32: 1e-4, torch.bfloat16: 4e-2, torch.float16: 1e-2}
CUT = Local(50, exact=True) & Causal()
CASES = [
    (Local(128), 0, None, 640),
    (PowersOfTwo() | Global(2), 3, None, 333),
    (Causal(), 3, None, 500),
    (CUT, 0, None, 640),
    (CUT | Global(1) & Causal(), 1, None, 700),
    (Window2d(3), 1, (12, 17), 205),
    (Window2d(3, exact=True), 1, (17, 31), 528),
    (Axial(exact=True), 0, (20, 30), 600),
]
cases = pytest.mark.parametrize("pattern, prefix, grid, n", CASES, ids=str)
dtypes = pytest.mark.parametrize("dtype", list(ERRORS), ids=str)


@pytest.fixture(autouse=True)
def exact_products():
    """Products of single precision are exact, as in the reference."""
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision(precision)


def inputs(b, n, dtype=torch.float32, heads=2, width=64, value=64):
    """Queries, keys, values, and the gradient of the output."""
    generator = torch.Generator().manual_seed(n)
    widths = (width, width, value, value)
    return [torch.randn(b, heads, n, each, generator=generator).to(DEVICE, dtype) for each in widths]


def keys(b, n):
    """A mask of keys that leaves the last sample nothing."""
    mask = torch.rand(b, n, generator=torch.Generator().manual_seed(n)) > 0.3
    mask[-1] = False
    return mask.to(DEVICE)


def near(pattern, prefix, grid, n):
    return pattern.dense(grid or n - prefix, prefix)[None, None].to(DEVICE)


def gradients(function, tensors, upstream):
    tensors = [t.detach().requires_grad_() for t in tensors]
    out = function(*tensors)
    return [out.detach(), *torch.autograd.grad(out, tensors, upstream)]


def by_flex(tensors, upstream, **options):
    """Output and gradients, of a bias too if there is one."""

    def attention(q, k, v, bias=None):
        with attention_backend("flex"):
            return attend(q, k, v, bias=bias, **options)

    return gradients(attention, tensors, upstream)


def by_reference(tensors, upstream, allowed):
    double = [t.double() for t in tensors]
    return gradients(lambda q, k, v, bias=None: attend_reference(q, k, v, allowed, bias), double, upstream.double())


def assert_near(found, expected, error):
    for mine, true in zip(found, expected, strict=True):
        largest = true.abs().max().clamp(min=1)
        torch.testing.assert_close(mine.double() / largest, true / largest, rtol=0, atol=error)


@dtypes
@cases
@pytest.mark.parametrize("masked", [False, True])
def test_a_batch_gets_what_the_reference_computes(pattern, prefix, grid, n, masked, dtype):
    *qkv, upstream = inputs(2, n, dtype)
    mask = keys(2, n) if masked else None
    allowed = near(pattern, prefix, grid, n)
    allowed = allowed & mask[:, None, None] if masked else allowed
    found = by_flex(qkv, upstream, mask=mask, pattern=pattern, prefix=prefix, grid=grid)
    assert_near(found, by_reference(qkv, upstream, allowed), ERRORS[dtype])
    if masked:
        assert all((t[-1] == 0).all() for t in found)  # no key is allowed: exactly 0, with zero gradients


@dtypes
@pytest.mark.parametrize("shape", [(2, 2, 500, 500), (1, 2, 500, 500), (2, 1, 1, 500), (1, 1, 500, 1)], ids=str)
@pytest.mark.parametrize("pattern", [CUT, PowersOfTwo() | Global(1)], ids=str)
def test_a_bias_is_added_and_learns(pattern, shape, dtype):
    *qkv, upstream = inputs(2, 500, dtype)
    bias = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(DEVICE, dtype)
    bias = bias.masked_fill(bias > 1.5, -torch.inf)
    found = by_flex([*qkv, bias], upstream, pattern=pattern)
    assert_near(found, by_reference([*qkv, bias], upstream, near(pattern, 0, None, 500)), ERRORS[dtype])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_errs_at_most_twice_as_much_as_torchs_kernels(dtype):
    *qkv, upstream = inputs(2, 512, dtype)
    allowed = near(CUT, 0, None, 512)
    exact = by_reference(qkv, upstream, allowed)
    torchs = gradients(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, attn_mask=allowed), qkv, upstream)
    for mine, other, true in zip(by_flex(qkv, upstream, pattern=CUT), torchs, exact, strict=True):
        assert (mine.double() - true).abs().max() <= 2 * (other.double() - true).abs().max()


@pytest.mark.parametrize("width, value", [(16, 16), (24, 40), (80, 80), (128, 64), (256, 256)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_heads_of_any_width(width, value, dtype):
    *qkv, upstream = inputs(1, 300, dtype, width=width, value=value)
    expected = by_reference(qkv, upstream, near(CUT, 0, None, 300))
    assert_near(by_flex(qkv, upstream, pattern=CUT), expected, ERRORS[dtype])


@pytest.mark.parametrize("poison", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("where", ["q", "k", "v"])
@pytest.mark.parametrize("learns", [True, False])
@dtypes
def test_what_is_forbidden_does_not_leak(dtype, poison, where, learns):
    """Those who attend to NaN get it; all others, and all gradients, are what they are without it."""
    *qkv, upstream = inputs(2, 300, dtype)
    clean = [t.clone() for t in qkv]
    qkv["qkv".index(where)][:, :, 77, 3] = poison
    clean["qkv".index(where)][:, :, 77] = 0
    mask = torch.ones(2, 300, dtype=torch.bool, device=DEVICE)
    mask[1, 77] = mask[:, 280:] = False
    allowed = near(CUT, 0, None, 300) & mask[:, None, None]
    bad = allowed[..., 77].clone()
    if where == "q":
        bad[:] = False
        bad[:, :, 77] = True
    if learns:
        found = by_flex(qkv, upstream, pattern=CUT, mask=mask)
        kept = upstream.masked_fill(bad[..., None], 0)
        expected = by_reference(clean, kept, allowed)
        expected[0] = expected[0].masked_fill(bad[..., None], 0)
        assert torch.equal(found[0].isnan().all(dim=-1), bad.expand(-1, 2, -1))
        assert_near([found[0].nan_to_num(0), *found[1:]], expected, ERRORS[dtype])
    else:
        with attention_backend("flex"), torch.no_grad():
            out = attend(*qkv, pattern=CUT, mask=mask)
        assert torch.equal(out.isnan().any(dim=-1), bad.expand(-1, 2, -1))
        assert torch.equal(out.isnan().all(dim=-1), bad.expand(-1, 2, -1))


def test_poison_in_masked_keys_of_whole_blocks():
    *qkv, upstream = inputs(2, 640, torch.bfloat16)
    mask = keys(2, 640)
    clean = by_flex(qkv, upstream, pattern=Local(128), mask=mask)
    for t in qkv[1:]:
        t.masked_fill_(~mask[:, None, :, None], torch.nan)
    for mine, other in zip(by_flex(qkv, upstream, pattern=Local(128), mask=mask), clean, strict=True):
        torch.testing.assert_close(mine, other)


ROWS = [[70, 1, 5, 200, 64], [128, 128], [900], [20] * 30, [1, 2, 3]]


@dtypes
@pytest.mark.parametrize("lengths", ROWS, ids=str)
@pytest.mark.parametrize("pattern", ["Local(64) | Global(1)", "Local(20, exact=True) & Causal()", "Causal()", None])
@pytest.mark.parametrize("biased", [False, True])
def test_a_sequence_in_a_row_gets_what_it_gets_alone(lengths, pattern, biased, dtype):
    parsed = None if pattern is None else Pattern.parse(pattern)
    packing = Packing.of([Place(n, min(n, 1)) for n in lengths])
    *qkv, upstream = inputs(1, packing.total, dtype)
    biases = [torch.randn(1, 2, n, n).to(DEVICE, dtype) for n in lengths] if biased else []

    def attention(q, k, v, *biases):
        with attention_backend("flex"):
            return attend(q, k, v, bias=biases or None, pattern=parsed, packing=packing)

    found, start = gradients(attention, [*qkv, *biases], upstream), 0
    for number, place in enumerate(packing):
        own = slice(start, start + place.length)
        allowed = None if parsed is None else near(parsed, place.prefix, None, place.length)
        tensors = [t[:, :, own] for t in qkv] + biases[number : number + 1]
        mine = [t[:, :, own] for t in found[:4]] + found[4:][number : number + 1]
        assert_near(mine, by_reference(tensors, upstream[:, :, own], allowed), ERRORS[dtype])
        start += place.length


def test_the_backend_that_serves():
    q, k, v, _ = inputs(1, 2048, torch.bfloat16)
    packing = Packing.of([Place(2000, 1), Place(48)])
    bias = torch.zeros(1, 1, 1, 2048, device=DEVICE)
    for options in ({}, {"bias": bias}, {"packing": packing}, {"mask": keys(1, 2048)}):
        with record_attention() as calls:
            attend(q, k, v, pattern=CUT, **options)
        assert calls[0].backend == "flex" == explain(q, k, v, pattern=CUT, **options).backend
    assert "no dropout" in explain(q, k, v, pattern=CUT, dropout=0.1).why
    assert explain(q.double(), k.double(), v.double(), pattern=CUT).backend == "blockwise"


def test_neither_lengths_nor_masks_nor_patterns_make_a_new_graph():
    """Every row is another one, and after the first nothing is compiled."""
    torch._dynamo.reset()
    flex._compiled.cache_clear()

    def step(lengths, pattern):
        packing = Packing.of([Place(n, min(1, n)) for n in lengths])
        *qkv, upstream = inputs(1, packing.total, torch.bfloat16)
        by_flex(qkv, upstream, pattern=pattern, packing=packing)

    step([70, 1, 130, 5], CUT)
    with torch.compiler.set_stance("fail_on_recompile"):
        step([64, 300, 2, 9, 77], Causal())
        step([500], Local(20, exact=True) | Global(1))
        step([20] * 11, Local(9, exact=True))


def test_nothing_waits_for_the_device():
    """Neither pass reads anything back, in a batch or in a row; a new row of another packing does not, either."""

    def step(warm, n, lengths):
        *qkv, upstream = inputs(2, n, torch.bfloat16)
        mask = keys(2, n)
        packing = Packing.of([Place(m, min(1, m)) for m in lengths])
        *row, up = inputs(1, packing.total, torch.bfloat16)
        torch.cuda.set_sync_debug_mode("error" if warm else "default")
        try:
            by_flex(qkv, upstream, pattern=CUT, mask=mask)
            by_flex(row, up, pattern=CUT, packing=packing)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    step(False, 500, [70, 130])
    step(False, 600, [64, 1, 99])  # from here on a batch has no fixed sizes, either
    step(True, 500, [70, 130])
    step(True, 700, [31, 333])


def test_a_model_that_is_compiled_has_it_inside():
    q, k, v, upstream = inputs(2, 1024, torch.bfloat16)

    def model(q, k, v):
        return attend(q * 2, k, v, pattern=CUT) + 1

    eager, compiled = (gradients(each, (q, k, v), upstream) for each in (model, torch.compile(model)))
    for mine, other in zip(compiled, eager, strict=True):
        torch.testing.assert_close(mine, other, rtol=2e-2, atol=2e-2)


def test_a_layer_that_is_computed_again_has_the_same_gradients():
    from torch.utils.checkpoint import checkpoint

    q, k, v, upstream = inputs(2, 1024, torch.bfloat16)

    def layer(q, k, v):
        return attend(q, k, v, pattern=CUT)

    plain = gradients(layer, (q, k, v), upstream)
    again = gradients(lambda *t: checkpoint(layer, *t, use_reentrant=False), (q, k, v), upstream)
    for mine, other in zip(again, plain, strict=True):
        torch.testing.assert_close(mine, other)
