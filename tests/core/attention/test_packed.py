"""Attention in a row of several sequences gives what each sequence gets alone, on every backend."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from packed_cases import (
    BACKENDS,
    alone,
    calls,
    inputs,
    near,
    parts,
    rows,
    serves,
    together,
    with_gradients,
    worst,
)

from core import attend, attention_backend, explain, record_attention
from core.attention.packing import Packing, Place
from core.attention.relation import Relation
from core.sparse import Causal, Global, Local, PowersOfTwo, Window2d, native

ERRORS = {torch.float64: 1e-10, torch.float32: 1e-5}
BOTH = st.sampled_from(list(ERRORS))
ROW = Packing.of([Place(70, 1), Place(1), Place(0), Place(130, 3), Place(5)])
GRID_ROW = Packing.of([Place(1 + 6 * 7, 1, (6, 7)), Place(1 + 1, 1, (1, 1)), Place(9 * 5, 0, (9, 5))])


def restrided(t, how):
    """The same numbers at other strides."""
    match how:
        case "heads last":
            return t.transpose(1, 2).contiguous().transpose(1, 2)
        case "features apart":
            return t.repeat_interleave(2, dim=3)[..., ::2]
        case "features outside":
            return t.mT.contiguous().mT
    return t


STRIDES = st.sampled_from(["plain", "heads last", "features apart", "features outside"])


@settings(max_examples=180, deadline=None)
@given(call=calls(), backend=st.sampled_from(BACKENDS), dtype=BOTH, strides=STRIDES, data=st.data())
def test_a_sequence_gets_what_it_gets_alone(call, backend, dtype, strides, data):
    pattern, packing = call
    assume(serves(backend, packing, pattern))
    scale, e = data.draw(st.sampled_from([None, 0.3, -1.0])), data.draw(st.sampled_from([8, 5]))
    *qkv, upstream = (restrided(t, strides) for t in inputs(packing, e=e, dtype=dtype))
    found = together(qkv, upstream, packing, backend, pattern=pattern, scale=scale)
    double = [t.double() for t in (*qkv, upstream)]
    assert worst(found, alone(double[:3], double[3], packing, pattern=pattern, scale=scale)) < ERRORS[dtype]


@settings(max_examples=60, deadline=None)
@given(data=st.data(), backend=st.sampled_from([None, "native", "dense", "reference"]), dtype=BOTH)
def test_sequences_may_attend_to_others_and_have_biases(data, backend, dtype):
    packing = data.draw(rows(least=1))
    key_packing = data.draw(rows(least=len(packing), most=len(packing)))
    biased = data.draw(st.booleans()) and backend != "native"
    assume(serves(backend, packing, key_packing=key_packing))
    *qkv, upstream = inputs(packing, key_packing, c=4, dtype=dtype)
    bias = None
    if biased:
        wide = data.draw(st.booleans())
        bias = [
            torch.randn(1, 2 if wide else 1, own.length, keys.length if wide else 1, dtype=torch.float64)
            for own, keys in zip(packing, key_packing, strict=True)
        ]
    found = together(qkv, upstream, packing, backend, key_packing=key_packing, bias=bias)
    double = [t.double() for t in (*qkv, upstream)]
    assert worst(found, alone(double[:3], double[3], packing, key_packing, bias=bias)) < ERRORS[dtype]


@pytest.mark.parametrize("backend", ["blockwise", "dense"])
def test_the_gradient_of_a_bias_is_its_own(backend):
    *qkv, _ = inputs(ROW)
    biases = [torch.randn(1, 2, n, n, dtype=torch.float64, requires_grad=True) for n in ROW.lengths.tolist()]
    with attention_backend(backend):
        out = attend(*qkv, packing=ROW, pattern=Local(16), bias=biases)
    assert biases[2].numel() == 0
    learned = [bias for bias in biases if bias.numel()]
    found = torch.autograd.grad(out.square().sum(), learned)
    there = [own for own in zip(parts(ROW), ROW, strict=True) if own[1].length]
    for (own, place), bias, grad in zip(there, learned, found, strict=True):
        with attention_backend("dense"):
            q, k, v = (t[:, :, own] for t in qkv)
            each = attend(q, k, v, pattern=Local(16), prefix=place.prefix, bias=bias)
        [expected] = torch.autograd.grad(each.square().sum(), [bias])
        torch.testing.assert_close(grad, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "backend, pattern",
    [
        (backend, pattern)
        for backend in ("native", "dense", "blockwise")
        for pattern in (None, Local(64), PowersOfTwo() | Global(1))
        if backend != "blockwise" or pattern
    ],
    ids=str,
)
def test_half_precision_error(dtype, backend, pattern):
    """Output and gradients: at most twice the error of torch's dense attention of each sequence in the same dtype."""
    packing = Packing.of([Place(300, 1), Place(1), Place(37), Place(500, 1)])
    *qkv, upstream = inputs(packing, c=32, e=32, dtype=dtype)
    double = [t.double() for t in (*qkv, upstream)]
    exact = alone(double[:3], double[3], packing, pattern=pattern)
    found, outs = together(qkv, upstream, packing, backend, pattern=pattern), []
    for own, place in zip(parts(packing), packing, strict=True):
        mask, tensors = near(pattern, place), [t[:, :, own] for t in (*qkv, upstream)]
        outs.append(
            with_gradients(
                lambda *t, mask=mask: F.scaled_dot_product_attention(*t, attn_mask=mask), tensors[:3], tensors[3]
            )
        )
    plain = [torch.cat(each, dim=2) for each in zip(*outs, strict=True)]
    for mine, theirs, expected in zip(found, plain, exact, strict=True):
        assert (mine.double() - expected).abs().max() <= 2 * (theirs.double() - expected).abs().max()


# --- Nothing leaks ----------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(call=calls(), backend=st.sampled_from(BACKENDS), poison=st.sampled_from([torch.nan, torch.inf]), data=st.data())
def test_nan_reaches_no_other_sequence_and_no_query_that_may_not_attend_to_it(call, backend, poison, data):
    pattern, packing = call
    assume(serves(backend, packing, pattern) and packing.total)
    *qkv, upstream = inputs(packing)
    which = data.draw(st.sampled_from([i for i, place in enumerate(packing) if place.length]))
    own, place = parts(packing)[which], list(packing)[which]
    token = data.draw(st.integers(0, place.length - 1))
    dirty, both = [t.clone() for t in qkv], data.draw(st.booleans())
    for t in dirty[0 if both else 1 :]:
        t[:, :, own.start + token] = poison
    clean = together(qkv, upstream, packing, backend, pattern=pattern)
    found = together(dirty, upstream, packing, backend, pattern=pattern)
    others = torch.ones(packing.total, dtype=torch.bool)
    others[own] = False
    for a, b in zip(found, clean, strict=True):
        torch.testing.assert_close(a[:, :, others], b[:, :, others], rtol=0, atol=1e-12)
    # Within the sequence: the queries that may attend to it, and the keys that those attend to.
    pairs = torch.ones(place.length, place.length, dtype=torch.bool) if pattern is None else near(pattern, place)[0, 0]
    reached = pairs[:, token].clone()
    reached[token] |= both
    touched = pairs[reached].any(dim=0) | both  # a query that is NaN itself may reach the gradient of any key
    touched[token] = True
    for a, b, hit in zip(found, clean, (reached, reached, touched, touched), strict=True):
        torch.testing.assert_close(a[:, :, own][:, :, ~hit], b[:, :, own][:, :, ~hit], rtol=0, atol=1e-12)
    assert not found[0][:, :, own][:, :, reached].isfinite().all(dim=-1).any() or poison == torch.inf


@pytest.mark.parametrize("backend", ["native", "dense"])
def test_nan_in_the_first_token_of_a_row_is_not_in_the_padding_of_others(backend):
    packing = Packing.of([Place(65), Place(1)])
    *qkv, upstream = inputs(packing)
    clean = together(qkv, upstream, packing, backend)
    for t in qkv:
        t[:, :, 0] = torch.nan
    for dirty, expected in zip(together(qkv, upstream, packing, backend), clean, strict=True):
        torch.testing.assert_close(dirty[:, :, 65:], expected[:, :, 65:])


# --- Order, threads, dropout ------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(call=calls(), backend=st.sampled_from(BACKENDS), seed=st.integers(0, 99))
def test_order_in_the_row_changes_nothing(call, backend, seed):
    pattern, packing = call
    assume(serves(backend, packing, pattern))
    order = torch.randperm(len(packing), generator=torch.Generator().manual_seed(seed))
    where = [torch.arange(packing.total)[own] for own in parts(packing)]
    moved = torch.cat([torch.arange(0), *(where[i] for i in order)])
    *qkv, upstream = inputs(packing)
    found = together(
        [t[:, :, moved] for t in qkv], upstream[:, :, moved], Packing(packing.places[order]), backend, pattern=pattern
    )
    expected = [t[:, :, moved] for t in together(qkv, upstream, packing, backend, pattern=pattern)]
    if backend == "native":
        assert all(map(torch.equal, found, expected))
    assert worst(found, expected) < 1e-13


@pytest.mark.parametrize("pattern", [None, Local(16) | Global(1), PowersOfTwo()], ids=str)
def test_threads_do_not_change_the_result(pattern):
    """Outputs to the bit. Sums of dk and dv are added up in as many parts as there are threads."""
    *qkv, upstream = inputs(ROW, heads=1)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            found += [together(qkv, upstream, ROW, "native", pattern=pattern) for _ in range(2)]
    finally:
        torch.set_num_threads(before)
    for first, again in zip(found[::2], found[1::2], strict=True):
        assert all(map(torch.equal, first, again))
    for each in found:
        assert torch.equal(each[0], found[0][0]) and torch.equal(each[1], found[0][1])
        assert worst(each, found[0]) < 1e-13


@pytest.mark.parametrize(
    "backend, pattern",
    [
        (backend, pattern)
        for backend in (None, "dense", "blockwise")
        for pattern in (None, Local(256), PowersOfTwo() | Global(1))
        if backend != "blockwise" or pattern
    ],
    ids=str,
)
def test_dropout_drops_its_share_of_each_sequence(backend, pattern):
    """With one-hot values the output is the weights; those of two equal sequences are dropped apart from each other."""
    n, count, dropout = 64, 12, 0.3
    packing = Packing.of([Place(n, 1)] * count + [Place(n - 1)])
    q = torch.zeros(1, 8, packing.total, 4)
    v = torch.eye(n).repeat(count + 1, 1)[: packing.total].expand(1, 8, -1, -1).clone().requires_grad_()
    options = {"packing": packing, "pattern": pattern}
    whole = attend(q, q, v, **options).detach()
    with attention_backend(backend) if backend else attention_backend("native"):
        out = attend(q, q, v, **options, dropout=dropout)
    upstream = torch.randn_like(out)
    [dv] = torch.autograd.grad(out, v, upstream)
    out, equal = out.detach(), slice(0, n * count)
    kept = (out > 0) | (whole == 0)
    assert ((out - whole / (1 - dropout)).abs() < 1e-6)[kept].all()  # each is dropped or made larger
    weights = (out[:, :, equal] > 0).unflatten(2, (count, n)).double()
    there = (whole[:, :, equal] > 0).unflatten(2, (count, n))
    spread = (dropout * (1 - dropout) / there.sum()) ** 0.5
    assert abs(1 - weights[there].mean() - dropout) < 4 * spread
    assert not any(torch.equal(weights[:, :, 0], weights[:, :, i]) for i in range(1, count))
    draws = weights.flatten(3).transpose(1, 2).flatten(0, 2)[:, there[0, 0, 0].flatten()]  # of 96 equal matrices
    assert abs(torch.corrcoef(draws).fill_diagonal_(0)).max() < 0.2  # thousands of pairs of draws have a long tail
    for own in parts(packing):  # the gradient is that of what was drawn
        expected = out[:, :, own, : own.stop - own.start].mT @ upstream[:, :, own]
        torch.testing.assert_close(dv[:, :, own], expected, rtol=1e-4, atol=1e-5)


# --- Derivatives, operators, records --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "pattern, packing", [(None, ROW), (Local(16) | Global(1), ROW), (Window2d(1), GRID_ROW)], ids=str
)
def test_gradcheck(pattern, packing):
    q, k, v, _ = (t.requires_grad_() for t in inputs(packing, heads=1, c=3, e=2))
    with attention_backend("native"):
        assert torch.autograd.gradcheck(
            lambda *t: attend(*t, packing=packing, pattern=pattern), (q, k, v), fast_mode=True
        )


@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("pattern", ["", "Local(16) | Global(1)"])
def test_the_operators_keep_to_what_torch_asks_of_one(dropout, pattern):
    """Schema, gradients and shapes without memory; with dropout two runs differ, so their results are not compared."""
    *qkv, upstream = inputs(ROW, dtype=torch.float32)
    how = ROW.places.clone(), None, pattern, [0.3, dropout]
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    tests += () if dropout else ("test_aot_dispatch_dynamic",)
    learned = [t.requires_grad_() for t in qkv]
    torch.library.opcheck(torch.ops.trivium.packed_attention, (*learned, *how), test_utils=tests)
    saved = [upstream, *torch.ops.trivium.packed_attention(*learned, *how), *qkv]
    torch.library.opcheck(torch.ops.trivium.packed_attention_backward, (*(t.detach() for t in saved), *how))


def test_what_is_recorded_of_a_row_is_a_call_of_each_sequence():
    for pattern, packing in ((None, ROW), (Local(16) | Global(1), ROW), (Window2d(1), GRID_ROW)):
        q, k, v, _ = inputs(packing)
        bias = [torch.randn(1, 1, n, n, dtype=torch.float64) for n in packing.lengths.tolist()]
        for added in (None, bias):
            with record_attention() as calls:
                attend(q, k, v, packing=packing, pattern=pattern, bias=added)
            [call] = calls
            assert len(call.parts) == len(packing)
            for number, (own, place, part) in enumerate(zip(parts(packing), packing, call.parts, strict=True)):
                relation = Relation(None, added and added[number], pattern, place.prefix, place.grid)
                with record_attention() as single:
                    options = {"pattern": pattern, "prefix": place.prefix, "grid": place.grid, "bias": relation.bias}
                    attend(q[:, :, own], k[:, :, own], v[:, :, own], **options)
                torch.testing.assert_close(part.weights, single[0].weights)
                torch.testing.assert_close(call.weights[:, :, own, own], part.weights)
            whole = call.weights
            for own in parts(packing):
                whole[:, :, own, own] = 0
            assert (whole == 0).all()


def test_explain_says_which_backend_serves_a_row_and_why():
    q, k, v, _ = inputs(ROW)
    why = f"several sequences lie in a row; the kernel was {native.origin()}"
    assert explain(q, k, v, packing=ROW) == ("native", why)
    assert explain(q, k, v, packing=ROW, pattern=Local(16)).backend == "native"
    bias = [torch.zeros(1, 1, n, n) for n in ROW.lengths.tolist()]
    choice = explain(q, k, v, packing=ROW, bias=bias)
    assert choice == ("dense", "several sequences lie in a row; not native: it takes no bias for sequences in a row")
    assert explain(q, k, v, packing=ROW, bias=bias, pattern=Causal()).backend == "blockwise"
    nothing = Packing.of([])
    assert "a tensor is empty" in explain(q[:, :, :0], k[:, :, :0], v[:, :, :0], packing=nothing).why


def test_a_row_without_sequences_has_outputs_and_gradients():
    for packing in (Packing.of([]), Packing.of([Place(0)] * 3)):
        *qkv, upstream = inputs(packing)
        found = together(qkv, upstream, packing)
        assert [t.shape for t in found] == [t.shape for t in (upstream, *qkv)]
