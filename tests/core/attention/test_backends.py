"""Which backend serves a call of `attend`, and that each gives the same result."""

import pytest
import torch
import torch.nn.functional as F
from sparse_cases import gradients, inputs, relation, worst

from core import attend, attend_reference, attention_backend, explain, record_attention
from core.attention.packing import Packing, Place
from core.sparse import Causal, Global, Local, PowersOfTwo, Window2d, native


def test_attend_chooses_and_can_be_forced():
    short, long = inputs((1, 1, 128, 16), 0)[:3], inputs((1, 1, 2048, 16), 0)[:3]
    with record_attention() as calls:
        attend(*long, pattern=Local(64))
        attend(*long, pattern=Local(64), bias=torch.zeros(1, 1, 1, 1))
        attend(*long, pattern=Local(1800), bias=torch.zeros(1, 1, 1, 1))
        attend(*short, pattern=Local(64), bias=torch.zeros(1, 1, 1, 1))
        attend(*long)
        with attention_backend("blockwise"):
            forced = attend(*short, pattern=Local(64))
    assert [call.backend for call in calls] == ["native", "native", "native", "native", "native", "blockwise"]
    assert calls[2].why == "the pattern keeps 73.4% of all pairs of 2048 tokens"
    assert calls[4].why == "there is no pattern, and there are many pairs"
    torch.testing.assert_close(forced, attend(*short, pattern=Local(64)))
    assert (calls[0].weights[0, 0][~Local(64).dense(2048)] == 0).all()
    why = f"{calls[0].why}; the kernel was {native.origin()}"
    assert explain(*long, pattern=Local(64)) == (calls[0].backend, why)


@pytest.mark.parametrize(
    "length, dtype, options, backend, why",
    [
        (128, torch.float32, {}, "dense", "few pairs"),
        (1024, torch.float32, {}, "native", "many pairs"),
        (1024, torch.float64, {}, "native", "many pairs"),
        (1024, torch.float16, {}, "dense", "not native: it computes float16 in float32 here"),
        (200, torch.float32, {"dropout": 0.1}, "dense", "few pairs"),
        (512, torch.float32, {"dropout": 0.1}, "native", "many pairs"),
        (512, torch.float32, {"mask": torch.ones(1, 512, dtype=torch.bool)}, "native", "many pairs"),
        (64, torch.float32, {"bias": torch.zeros(1, 1, 64, 64)}, "dense", "few pairs"),
        (256, torch.float32, {"bias": torch.zeros(1, 1, 256, 256)}, "native", "many pairs"),
        (256, torch.float32, {"mask": torch.ones(1, 1, 256, 256, dtype=torch.bool)}, "native", "many pairs"),
    ],
)
def test_all_pairs_go_to_the_kernel_that_is_faster(length, dtype, options, backend, why):
    q, k, v, _ = inputs((1, 2, length, 32), 0, dtype)
    choice = explain(q, k, v, **options)
    assert choice.backend == backend and why in choice.why


@pytest.mark.skipif(not native.computes(torch.bfloat16), reason="for processors with AVX-512 for bf16")
def test_bf16_goes_to_the_kernel_unless_torch_has_matrix_instructions(monkeypatch):
    few, many = (inputs((1, 2, length, 32), 0, torch.bfloat16)[:3] for length in (128, 512))
    monkeypatch.setattr(native, "_has_amx", lambda: False)
    assert explain(*few).backend == "dense" and explain(*many).backend == "native"
    assert "with bfloat16 arithmetic" in explain(*many).why
    monkeypatch.setattr(native, "_has_amx", lambda: True)
    assert explain(*many).backend == "dense" and "matrix instructions" in explain(*many).why
    assert explain(*many, pattern=Local(64)).backend == "native"


def test_exported_programs_keep_to_operators_of_torch():
    class Whole(torch.nn.Module):
        def forward(self, q, k, v):
            return attend(q, k, v)

    q, k, v, _ = inputs((1, 2, 1024, 32), 0, torch.float32)
    assert explain(q, k, v).backend == "native"
    program = torch.export.export(Whole(), (q, k, v))
    assert "trivium" not in str(program.graph)
    torch.testing.assert_close(program.module()(q, k, v), attend(q, k, v), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(2, 3, 70, 90), (1, 3, 70, 90), (2, 1, 1, 90), (1, 1, 70, 1)])
@pytest.mark.parametrize("masked", [False, True])
def test_a_bias_learns_in_the_native_kernel(shape, masked):
    q, upstream, *_ = inputs((2, 3, 70, 20), 0)
    k, v, *_ = inputs((2, 3, 90, 20), 1)
    bias = torch.randn(shape, dtype=torch.float64)
    bias[..., :1] = -torch.inf
    mask = torch.rand(2, 90) > 0.3 if masked else None
    expected = gradients(
        lambda q, k, v, bias: attend_reference(q, k, v, None if mask is None else mask[:, None, None], bias),
        (q, k, v, bias),
        upstream,
    )
    with attention_backend("native"):
        found = gradients(lambda q, k, v, bias: attend(q, k, v, bias=bias, mask=mask), (q, k, v, bias), upstream)
    assert worst(found, expected) < 1e-10


@pytest.mark.parametrize("n", [1024, 1031])  # whole lines of the cache, and parts of them
@pytest.mark.parametrize("pattern", [None, Local(300, exact=True) | Global(3)])
def test_the_gradient_of_a_large_bias_is_written_past_the_caches(n, pattern):
    q, k, v, upstream = inputs((1, 1, n, 16), 0)
    near = None if pattern is None else relation(pattern, 0, None, n)
    tensors = q, k, v, torch.randn(1, 1, n, n, dtype=torch.float64)
    expected = gradients(lambda q, k, v, bias: attend_reference(q, k, v, near, bias), tensors, upstream)
    with attention_backend("native"):
        found = gradients(lambda q, k, v, bias: attend(q, k, v, bias=bias, pattern=pattern), tensors, upstream)
    assert worst(found, expected) < 1e-10


@pytest.mark.parametrize(
    "backend, call, problem",
    [
        ("blockwise", {}, "there is no pattern"),
        ("flex", {"pattern": Local(64), "dropout": 0.1}, "no dropout"),
        ("blockwise", {"pattern": Local(64), "mask": torch.ones(1, 1, 128, 128, dtype=torch.bool)}, "the mask differs"),
        ("flex", {"pattern": Local(64)}, "no double precision"),
        ("flex", {}, "there is no pattern"),
        ("reference", {"dropout": 0.1}, "no dropout"),
    ],
)
def test_a_forced_backend_that_cannot_serve_says_why(backend, call, problem):
    q, k, v, _ = inputs((1, 1, 128, 16), 0)
    with attention_backend(backend), pytest.raises(ValueError, match=f"{backend} backend cannot serve.*{problem}"):
        attend(q, k, v, **call)


def test_without_a_compiler_blockwise_serves_and_says_so(monkeypatch):
    monkeypatch.setattr(native, "why_not", lambda: "no compiler")
    q, k, v, _ = inputs((1, 1, 2048, 16), 0)
    choice = explain(q, k, v, pattern=Local(64))
    assert choice.backend == "blockwise" and "not native: no compiler" in choice.why


@pytest.mark.parametrize("n, m", [(100, 170), (170, 100)])
@pytest.mark.parametrize("backend", ["dense", "native", "blockwise"])
def test_unequal_lengths(n, m, backend):
    """As in the longer of the two sequences, cut to the queries and keys that there are."""
    pattern = Local(50, exact=True) | Global(1)
    q, upstream, *_ = inputs((2, 2, n, 16), 0)
    k, v, *_ = inputs((2, 2, m, 16), 1)
    mask = torch.rand(2, m) > 0.3
    near = pattern.dense(max(n, m))[:n, :m]
    expected = gradients(lambda q, k, v: attend_reference(q, k, v, near & mask[:, None, None]), (q, k, v), upstream)
    with attention_backend(backend), record_attention() as calls:
        found = gradients(lambda q, k, v: attend(q, k, v, mask=mask, pattern=pattern), (q, k, v), upstream)
    assert worst(found, expected) < 1e-10
    assert calls[0].backend == backend and calls[0].weights.shape == (2, 2, n, m)


@pytest.mark.parametrize(
    "pattern, prefix, grid, n, masked, biased",
    [
        (Local(128), 0, None, 640, False, False),
        (PowersOfTwo() | Global(2), 3, None, 333, True, False),
        (Window2d(3), 1, (12, 17), 205, True, False),
        (Window2d(3, exact=True), 1, (12, 17), 205, False, False),
        (Local(50, exact=True) & Causal(), 0, None, 200, True, True),
    ],
    ids=str,
)
def test_flex(pattern, prefix, grid, n, masked, biased):
    q, k, v, _ = inputs((2, 2, n, 16), 0, torch.float32)
    mask = torch.rand(2, n) > 0.3 if masked else None
    bias = torch.randn(1, 2, n, n) if biased else None
    if masked:
        mask[1] = False
        v[:, :, ~mask[0]] = torch.nan
        v[1] = torch.nan
    with attention_backend("flex"):
        found = attend(q, k, v, mask=mask, bias=bias, pattern=pattern, prefix=prefix, grid=grid)
    near = relation(pattern, prefix, grid, n)
    expected = attend_reference(q, k, v, near if mask is None else near & mask[:, None, None], bias)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_flex_in_a_row():
    packing = Packing.of([Place(70, 1), Place(1), Place(0), Place(130, 3)])
    q, k, v, _ = inputs((1, 2, packing.total, 16), 0, torch.float32)
    k[:, :, 69] = torch.nan  # of the first sequence's last token, before which all others of it are
    pattern = Local(50, exact=True) & Causal() | Global(1) & Causal()
    with attention_backend("flex"):
        found = attend(q, k, v, pattern=pattern, packing=packing)
    with attention_backend("reference"):
        expected = attend(q, k, v, pattern=pattern, packing=packing)
    assert expected.isnan().any(dim=-1).sum() == 2
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5, equal_nan=True)


def test_flex_in_half_precision():
    *qkv, _ = inputs((1, 2, 640, 32), 0, torch.bfloat16)
    near = relation(Local(128), 0, None, 640)
    exact = attend_reference(*(t.double() for t in qkv), near)
    plain = F.scaled_dot_product_attention(*qkv, attn_mask=near)
    with attention_backend("flex"):
        found = attend(*qkv, pattern=Local(128))
    assert (found.double() - exact).abs().max() <= 2 * (plain.double() - exact).abs().max()
