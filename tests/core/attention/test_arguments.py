"""Whatever attention is called with is served rightly or refused by a sentence that names the argument."""

from contextlib import nullcontext

import pytest
import torch

from core import UserError, attend, attend_reference, attention_backend, attention_weights, explain
from core.sparse import Axial, Causal, Global, Local, Window2d, make_plan
from core.sparse.plan import pattern_mask

pytestmark = pytest.mark.usefixtures("as_in_production")


def tensors(dtype=torch.float32):
    return torch.randn(3, 2, 3, 70, 8).to(dtype).unbind()


Q, K, V = tensors()
WRONG = {
    "q is a list": ({"q": Q.tolist()}, "q must be a tensor, not list"),
    "k is None": ({"k": None}, "k must be a tensor, not NoneType"),
    "v is an array": ({"v": V.numpy()}, "v must be a tensor, not ndarray"),
    "3 axes": ({"q": Q[0]}, "q must have 4 axes"),
    "5 axes": ({"v": V[None]}, "v must have 4 axes"),
    "whole numbers": ({"q": Q.long(), "k": K.long(), "v": V.long()}, "q must be of floating-point numbers"),
    "booleans": ({"v": V > 0}, "v must be of floating-point numbers, not torch.bool"),
    "complex": ({"q": Q.cfloat(), "k": K.cfloat(), "v": V.cfloat()}, "q must be of floating-point numbers"),
    "k of another dtype": ({"k": K.double()}, "k is torch.float64, but q is torch.float32"),
    "v of another dtype": ({"v": V.half()}, "v is torch.float16, but q is torch.float32"),
    "k elsewhere": ({"k": K.to("meta")}, "k is on meta, but q is on cpu"),
    "v elsewhere": ({"v": V.to("meta")}, "v is on meta, but q is on cpu"),
    "a sparse tensor": ({"v": V.to_sparse()}, "v must be a plain tensor"),
    "fewer heads": ({"k": K[:, :1], "v": V[:, :1]}, r"k of shape \(2, 1, 70, 8\) does not fit q"),
    "fewer batch entries": ({"k": K[:1], "v": V[:1]}, "k of shape .* does not fit q"),
    "other features": ({"k": K[..., :4]}, "k of shape .* does not fit q"),
    "5 keys and 70 values": ({"k": K[:, :, :5]}, r"v of shape \(2, 3, 70, 8\) does not fit k of shape \(2, 3, 5, 8\)"),
    "1 value for all keys": ({"v": V[:, :, :1]}, "v of shape .* does not fit k"),
    "values of fewer heads": ({"v": V[:, :1]}, "v of shape .* does not fit k"),
    "no features": ({"q": Q[..., :0], "k": K[..., :0]}, "at least one feature"),
    "mask of numbers": ({"mask": torch.ones(2, 70)}, "mask must be boolean"),
    "mask of another length": ({"mask": torch.ones(2, 69, dtype=torch.bool)}, r"mask of shape \(2, 69\)"),
    "mask of 3 axes": ({"mask": torch.ones(2, 70, 70, dtype=torch.bool)}, r"mask of shape \(2, 70, 70\)"),
    "mask elsewhere": ({"mask": torch.ones(2, 70, dtype=torch.bool, device="meta")}, "mask is on meta"),
    "mask that is a list": ({"mask": [True] * 70}, "mask must be a tensor"),
    "bias of another length": ({"bias": torch.zeros(1, 1, 70, 69)}, r"bias of shape \(1, 1, 70, 69\)"),
    "bias of 2 axes": ({"bias": torch.zeros(70, 70)}, r"bias of shape \(70, 70\)"),
    "bias of whole numbers": ({"bias": torch.zeros(1, 1, 70, 70, dtype=torch.int64)}, "bias must be of floating"),
    "bias elsewhere": ({"bias": torch.zeros(1, 1, 70, 70, device="meta")}, "bias is on meta"),
    "pattern as a text": ({"pattern": "Local(16)"}, r"pattern must be a Pattern, not 'Local\(16\)'"),
    "pattern's class": ({"pattern": Local}, "pattern must be a Pattern"),
    "negative prefix": ({"prefix": -1}, "prefix must be a whole number from 0 to 70, the number of tokens, not -1"),
    "prefix beyond the tokens": ({"prefix": 71}, "prefix must be a whole number from 0 to 70"),
    "prefix that is no number": ({"prefix": 1.0}, "prefix must be a whole number"),
    "negative grid": ({"grid": (-7, -10)}, r"grid must be \(rows, columns\), whole numbers of at least 1"),
    "empty grid": ({"grid": (0, 70)}, "grid must be"),
    "grid of three": ({"grid": (7, 5, 2)}, "grid must be"),
    "grid of a number": ({"grid": 70}, "grid must be"),
    "grid of a boolean": ({"grid": (True, 70)}, "grid must be"),
    "grid of other tokens": ({"grid": (8, 9)}, "0 prefix tokens and a grid of 8 x 9 do not make 70 tokens"),
    "negative dropout": ({"dropout": -0.1}, "dropout must be a probability, from 0 to 1, not -0.1"),
    "dropout beyond 1": ({"dropout": 1.1}, "dropout must be a probability"),
    "dropout that is NaN": ({"dropout": float("nan")}, "dropout must be a probability"),
    "dropout that is a tensor": ({"dropout": torch.tensor(0.1)}, "dropout must be a probability"),
    "scale that is NaN": ({"scale": float("nan")}, "scale must be a finite number"),
    "scale that is infinite": ({"scale": float("inf")}, "scale must be a finite number"),
    "scale beyond all floating-point numbers": ({"scale": 10**400}, "scale must be a finite number"),
    "scale that is a text": ({"scale": "1"}, "scale must be a finite number"),
}
ABOUT_PLACE = ("pattern", "prefix", "grid")
ELSEWHERE = (*ABOUT_PLACE, "dropout")  # what the reference has not


@pytest.mark.parametrize("case", WRONG)
@pytest.mark.parametrize("backend", [None, "native", "blockwise", "dense", "reference"])
def test_what_is_wrong_is_refused_and_named(case, backend):
    change, problem = WRONG[case]
    call = {"q": Q, "k": K, "v": V, "pattern": Local(16)} | change
    q, k, v = (call.pop(name) for name in "qkv")
    for function in (attend, explain):
        with nullcontext() if backend is None else attention_backend(backend):
            with pytest.raises(ValueError, match=f"^Attention: .*{problem}"):
                function(q, k, v, **call)
            if not any(name in change for name in ABOUT_PLACE):
                with pytest.raises(ValueError, match=f"^Attention: .*{problem}"):
                    function(q, k, v, **call | {"pattern": None})


@pytest.mark.parametrize(
    "case", [name for name, (change, _) in WRONG.items() if not {*change} & {*ABOUT_PLACE, "dropout"}]
)
def test_the_reference_refuses_it_too(case):
    change, problem = WRONG[case]
    call = {"q": Q, "k": K, "v": V} | change
    with pytest.raises(ValueError, match=problem):
        attend_reference(**call)
    if case != "k elsewhere" and "v" not in change and "values" not in case:
        del call["v"]
        with pytest.raises(ValueError, match=problem):
            attention_weights(**call)


def test_the_reference_takes_masks_of_pairs_alone():
    with pytest.raises(ValueError, match='mask of the axes "b h n m", not of 2 axes'):
        attend_reference(Q, K, V, torch.ones(2, 70, dtype=torch.bool))


def test_what_relates_a_sequence_to_itself():
    with pytest.raises(UserError, match="A grid relates a sequence to itself, but 70 queries meet 60 keys"):
        explain(Q, K[:, :, :60], V[:, :, :60], pattern=Window2d(2), grid=(7, 10))
    with pytest.raises(UserError, match="is about rows and columns"):
        attend(Q, K, V, pattern=Window2d(2))
    with pytest.raises(UserError, match="joins tiles of a grid with single tokens"):
        attend(Q, K, V, pattern=Axial() | Causal(), grid=(7, 10))


@pytest.mark.parametrize("place", [(-1, None), (71, None), (0, (-7, -10)), (0, (0, 0)), (0, (8, 9))], ids=str)
def test_a_plan_and_a_patterns_mask_are_of_places_that_there_are(place):
    prefix, grid = place
    with pytest.raises(ValueError, match=r"Attention: (prefix|grid|0 prefix)"):
        make_plan(Local(16), 70, prefix, grid)
    if grid != (0, 0):  # which is how the operator says that there is none
        with pytest.raises(ValueError, match=r"Attention: (prefix|grid|0 prefix)"):
            pattern_mask(Q, Local(16), prefix, grid)


@pytest.mark.parametrize("pattern", [Local(2**62), Local(10**30, exact=True), Window2d(2**40)], ids=str)
def test_a_window_far_beyond_the_tokens_is_all_of_them(pattern):
    grid = (7, 10) if pattern.on_grid else None
    torch.testing.assert_close(attend(Q, K, V, pattern=pattern, grid=grid), attend(Q, K, V))


@pytest.mark.parametrize("backend", ["native", "blockwise", "dense"])
@pytest.mark.parametrize("shape", [(1, 1), (2, 1), (1, 70), (1, 1, 1, 1), (2, 1, 1, 1)], ids=str)
def test_a_mask_may_be_shared_by_all_keys(shape, backend):
    mask = torch.ones(shape, dtype=torch.bool)
    mask[-1] = False
    pairs = mask[:, None, None] if mask.ndim == 2 else mask
    expected = attend_reference(Q, K, V, pairs & Local(16).dense(70))
    with attention_backend(backend):
        torch.testing.assert_close(attend(Q, K, V, mask=mask, pattern=Local(16)), expected)


@pytest.mark.parametrize("backend", ["native", "blockwise", "dense"])
def test_dropping_everything_leaves_0(backend):
    with attention_backend(backend):
        assert (attend(Q, K, V, pattern=Local(16), dropout=1) == 0).all()


@pytest.mark.parametrize("backend", ["blockwise", "dense", "reference"])
@pytest.mark.parametrize("dtypes", [(torch.float32, torch.float64), (torch.bfloat16, torch.float32)], ids=str)
def test_a_bias_may_be_more_exact_than_what_it_is_added_to(backend, dtypes):
    few, many = dtypes
    q, k, v, bias = *tensors(few), torch.randn(1, 1, 70, 70, dtype=many)
    expected = attend_reference(q.double(), k.double(), v.double(), Local(16).dense(70)[None, None], bias.double())
    with attention_backend(backend):
        found = attend(q, k, v, bias=bias, pattern=Local(16))
    assert found.dtype == few and (found.double() - expected).abs().max() < (3e-2 if few == torch.bfloat16 else 1e-5)


@pytest.mark.parametrize("pattern", [Local(4096), Local(4096) | Global(2)], ids=str)
@pytest.mark.parametrize("backend", ["native", "blockwise", "dense", "reference"])
def test_the_weights_of_equal_logits_add_up_to_1_however_large_they_are(backend, pattern):
    """Their log-sum-exp is rounded to the logits themselves."""
    q = k = torch.full((1, 2, 70, 4), 1e4)
    v = torch.randn(1, 2, 70, 4)
    expected = v.mean(dim=2, keepdim=True).expand_as(v)
    with attention_backend(backend):
        torch.testing.assert_close(attend(q, k, v, pattern=pattern), expected)


@pytest.mark.parametrize("pattern", [Local(64) | Global(2), Global(2)], ids=str)
@pytest.mark.parametrize("masked", [slice(2, 70), slice(0, 2), slice(2, 66), slice(0, 0)], ids=str)
@pytest.mark.parametrize("backend", ["native", "blockwise", "dense"])
def test_global_keys_or_all_others_may_be_missing_where_logits_are_very_low(backend, masked, pattern):
    q, k, v = torch.full((1, 2, 70, 4), 8.0), torch.full((1, 2, 70, 4), -8.0), torch.randn(1, 2, 70, 4)
    mask = torch.ones(1, 70, dtype=torch.bool)
    mask[:, masked] = False
    expected = attend_reference(q, k, v, mask[:, None, None] & pattern.dense(70))
    with attention_backend(backend):
        torch.testing.assert_close(attend(q, k, v, mask=mask, pattern=pattern), expected)


@pytest.mark.parametrize("backend", ["native", "blockwise", "dense", "reference"])
@pytest.mark.parametrize("value", [1e5, -1e30])
def test_a_finite_bias_beyond_half_precision_does_not_forbid_a_pair(backend, value):
    """A key that is far above the others, and a query for which all keys are equally far below."""
    q, k, v = tensors(torch.float16)
    bias = torch.zeros(1, 1, 70, 70)
    bias[:, :, 3, (slice(None) if value < 0 else 7)] = value
    with attention_backend(backend):
        found = attend(q, k, v, bias=bias, pattern=Local(4096))
    if value > 0:
        assert (found[:, :, 3] - v[:, :, 7]).abs().max() < 1e-2
    else:  # a mean of the values, with weights that depend on what is left of the logits
        assert ((v.amin(dim=2) < found[:, :, 3]) & (found[:, :, 3] < v.amax(dim=2))).all()


@pytest.mark.parametrize("pattern", [None, Local(16)], ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("backend", ["dense", "native", "blockwise", "reference"])
def test_under_autocast_dtypes_may_differ_and_no_backend_rounds_more(pattern, dtype, backend):
    """As torch's own attention there; gradients come back in each tensor's own dtype."""
    if pattern is None and backend in ("native", "blockwise"):
        return
    pairs = None if pattern is None else pattern.dense(70)[None, None]
    q, k, v = Q.clone().requires_grad_(), K.clone().requires_grad_(), V.to(dtype).requires_grad_()
    exact = attend_reference(*(t.detach().double() for t in (q, k, v)), pairs)
    plain = torch.nn.functional.scaled_dot_product_attention(
        *(t.detach().to(dtype) for t in (q, k, v)), attn_mask=pairs
    )
    with torch.autocast("cpu", dtype), attention_backend(backend):
        assert explain(q, k, v, pattern=pattern).backend == backend
        out = attend(q, k, v, pattern=pattern)
        grads = torch.autograd.grad(out.float().sum(), (q, k, v))  # as some do, inside
    assert out.dtype == dtype and [grad.dtype for grad in grads] == [torch.float32, torch.float32, dtype]
    assert (out.double() - exact).abs().max() <= 2 * (plain.double() - exact).abs().max()
    with torch.autocast("cpu", dtype), pytest.raises(ValueError, match=r"k is torch\.float64, but q is"):
        attend(Q, K.double(), V)


def test_a_backward_pass_under_autocast_is_as_exact_as_without():
    q, k, v = (t.double().requires_grad_() for t in (Q, K, V))
    single = [t.detach().float().requires_grad_() for t in (q, k, v)]
    exact = torch.autograd.grad(attend(q, k, v, pattern=Local(16)).sum(), (q, k, v))
    with attention_backend("blockwise"):
        out = attend(*single, pattern=Local(16))
    with torch.autocast("cpu", torch.bfloat16):
        found = torch.autograd.grad(out.sum(), single)
    for mine, true in zip(found, exact, strict=True):
        torch.testing.assert_close(mine.double(), true, atol=1e-5, rtol=1e-4)
