"""Every derivative of attention is right, or refused in a sentence; none is silently 0."""

import pytest
import torch
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

from core import Encoder, EncoderConfig, Tokens, attend, attend_reference, attention_backend, explain
from core.sparse import Global, Local, Window2d

N = 70
Q, K, V, T = torch.randn(4, 1, 2, N, 4, dtype=torch.float64).unbind()
PATTERN = Local(16, exact=True) | Global(1)
MASK = torch.arange(N)[None] < 60
BIAS = torch.randn(1, 2, N, N, dtype=torch.float64)
CALLS = {
    "plain": {},
    "masked": {"mask": MASK},
    "biased": {"bias": BIAS},
    "pattern": {"pattern": PATTERN},
    "pattern, masked": {"pattern": PATTERN, "mask": MASK},
    "pattern, biased": {"pattern": PATTERN, "bias": BIAS},
    "grid": {"pattern": Window2d(1), "grid": (7, 10)},
}
calls = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())


def reference(q, k, v, mask=None, bias=None, pattern=None, grid=None):
    mask = None if mask is None else mask[:, None, None]
    if pattern is not None:
        near = pattern.dense(grid or N)[None, None]
        mask = near if mask is None else mask & near
    return attend_reference(q, k, v, mask, bias)


def both(call):
    """Attention as a function of one number: what we give, and the expected."""
    ours = lambda a: attend(Q * a, K + a, V, **call).square().sum()
    expected = lambda a: reference(Q * a, K + a, V, **call).square().sum()
    return ours, expected, torch.tensor(1.3, dtype=torch.float64)


def dual(function):
    with forward_ad.dual_level():
        out = function(forward_ad.make_dual(Q, T), forward_ad.make_dual(K, T.flip(2)), V)
        return forward_ad.unpack_dual(out).tangent


@calls
def test_forward_mode(call):
    ours, expected = (lambda q, k, v: attend(q, k, v, **call)), (lambda q, k, v: reference(q, k, v, **call))
    torch.testing.assert_close(dual(ours), dual(expected))
    for one in range(3):
        tangents = tuple(T * (number == one) for number in range(3))
        torch.testing.assert_close(jvp(ours, (Q, K, V), tangents)[1], jvp(expected, (Q, K, V), tangents)[1])


@calls
def test_functional_transforms(call):
    ours, expected, a = both(call)
    torch.testing.assert_close(grad(ours)(a), grad(expected)(a))
    torch.testing.assert_close(vjp(ours, a)[1](a), vjp(expected, a)[1](a))
    several = torch.stack([a, a / 2, -a])
    torch.testing.assert_close(vmap(ours)(several), torch.stack([expected(x) for x in several]))
    torch.testing.assert_close(vmap(grad(ours))(several), torch.stack([grad(expected)(x) for x in several]))


@calls
def test_second_derivatives(call):
    ours, expected, a = both(call)
    exact = hessian(expected)(a)
    for second in (hessian(ours), grad(grad(ours)), jacrev(jacfwd(ours)), jacfwd(jacfwd(ours)), jacfwd(grad(ours))):
        torch.testing.assert_close(second(a), exact)


@pytest.mark.parametrize("backend", [None, "native", "blockwise", "dense"])
def test_a_second_backward_pass_is_refused(backend):
    """What the kernels do not have; reference has it."""
    ours, expected, a = both({"pattern": PATTERN})

    def twice(function):
        x = a.clone().requires_grad_()
        (first,) = torch.autograd.grad(function(x), x, create_graph=True)
        return torch.autograd.grad(first, x)[0]

    with attention_backend("reference"):
        torch.testing.assert_close(twice(ours), hessian(expected)(a))
    with pytest.raises(RuntimeError, match=r"no second derivative|is not implemented"):
        if backend is None:
            twice(ours)
        else:
            with attention_backend(backend):
                twice(ours)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_forward_mode_in_half_precision(dtype):
    q, k, v, t = (x.to(dtype) for x in (Q, K, V, T))
    exact = jvp(lambda q: reference(q, K, V), (Q,), (T,))[1]
    assert (jvp(lambda q: attend(q, k, v), (q,), (t,))[1].double() - exact).abs().max() < 0.05
    x = q.clone().requires_grad_()  # a graph at the same time
    with forward_ad.dual_level():
        out = attend(forward_ad.make_dual(x, t), k, v)
        assert (forward_ad.unpack_dual(out).tangent.double() - exact).abs().max() < 0.05


def test_explain_says_which_backend_has_the_derivative():
    found = {}

    def watch(name):
        def function(q):
            found[name] = explain(q, K, V, pattern=PATTERN)
            return attend(q, K, V, pattern=PATTERN).sum()

        return function

    watch("none")(Q)
    jvp(watch("jvp"), (Q,), (T,))
    grad(watch("grad"))(Q)
    vmap(watch("vmap"))(Q[None])
    with forward_ad.dual_level():
        watch("dual")(Q)
    assert {name: choice.backend for name, choice in found.items()} == {
        "none": "native",
        "jvp": "dense",
        "grad": "dense",
        "vmap": "native",
        "dual": "dense",
    }
    assert "not native: it has no forward-mode derivative" in found["jvp"].why
    assert "not native: it has no derivative for torch.func" in found["grad"].why


@pytest.mark.parametrize("backend", ["native", "blockwise", "flex"])
def test_a_forced_backend_without_the_derivative_says_so(backend):
    with attention_backend(backend):
        with pytest.raises(ValueError, match=f"{backend} backend cannot serve.*no forward-mode derivative"):
            jvp(lambda q: attend(q, K, V, pattern=Local(64)), (Q,), (T,))
        with pytest.raises(ValueError, match=rf"{backend} backend cannot serve.*no derivative for torch\.func"):
            grad(lambda q: attend(q, K, V, pattern=Local(64)).sum())(Q)


@pytest.mark.parametrize("kernel", ["native", "blockwise"])
def test_the_operator_itself_refuses_forward_mode(kernel):
    how = str(PATTERN), [0, 0, 0], [0.5, 0.0], kernel
    call = lambda q: torch.ops.trivium.sparse_attention(q, K, V, None, None, *how)
    with pytest.raises(RuntimeError, match="no forward-mode derivative"):
        jvp(call, (Q,), (T,))
    with pytest.raises(RuntimeError, match="no forward-mode derivative"), forward_ad.dual_level():
        call(forward_ad.make_dual(Q, T))
    out, lse, seed = call(Q)
    with pytest.raises(RuntimeError, match="no forward-mode derivative"), forward_ad.dual_level():
        grad = forward_ad.make_dual(out, T)
        torch.ops.trivium.sparse_attention_backward(grad, out, lse, seed, Q, K, V, None, None, *how)


@pytest.mark.parametrize("kernel", ["native", "blockwise"])
def test_vmap_over_a_kernel_and_its_backward_pass(kernel):
    """Sample by sample, whatever is different for each: masks, values, or what the gradients are of."""
    masks, values = torch.rand(3, 1, N) > 0.3, torch.randn(3, *V.shape, dtype=V.dtype)
    bias = torch.randn(1, 1, N, N, dtype=Q.dtype, requires_grad=True)
    options = {"bias": bias} if kernel == "blockwise" else {}
    with attention_backend(kernel):
        ours = lambda mask, v: attend(Q, K, v, mask=mask, pattern=PATTERN, **options)
        expected = torch.stack([ours(*each) for each in zip(masks, values, strict=True)])
        torch.testing.assert_close(vmap(ours)(masks, values), expected)
        v = V.clone().requires_grad_()
        out, learned = ours(None, v), [v, *options.values()]
        upstream = torch.randn(3, *out.shape, dtype=out.dtype)
        found = vmap(lambda grad: torch.autograd.grad(out, learned, grad, retain_graph=True))(upstream)
        each = [torch.autograd.grad(out, learned, grad, retain_graph=True) for grad in upstream]
        for mine, exact in zip(found, zip(*each, strict=True), strict=True):
            torch.testing.assert_close(mine, torch.stack(exact))
        with pytest.raises(RuntimeError, match=r"takes no batches of gradients .*: use torch\.func\.vmap"):
            torch.autograd.grad(out, learned, upstream, is_grads_batched=True)
        drop = lambda v: attend(Q, K, v, pattern=PATTERN, dropout=0.5)
        with pytest.raises(RuntimeError, match="randomness='different'"):
            vmap(drop)(values)
        one, other, _ = vmap(drop, randomness="different")(V.expand(3, *V.shape))
        assert not torch.equal(one, other)


def test_a_model_made_sparse_has_them_too():
    """Per-sample gradients, and how its output changes with its input."""
    config = EncoderConfig(dim=8, depth=2, heads=2, patterns=Local(16, exact=True))
    encoder = Encoder(config).double()
    x = torch.randn(3, N, 8, dtype=torch.float64)
    of_input = lambda x: encoder(Tokens(x)).x
    near = (of_input(x + 1e-6) - of_input(x - 1e-6)) / 2e-6
    torch.testing.assert_close(jvp(of_input, (x,), (torch.ones_like(x),))[1], near, atol=1e-6, rtol=1e-6)
    parameters = {name: p.detach() for name, p in encoder.named_parameters()}
    loss = lambda parameters, x: functional_call(encoder, parameters, (Tokens(x[None]),)).x.square().sum()
    each = vmap(grad(loss), in_dims=(None, 0))(parameters, x)
    loss(dict(encoder.named_parameters()), x[1]).backward()
    for name, parameter in encoder.named_parameters():
        torch.testing.assert_close(each[name][1], parameter.grad)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("biased", [False, True])
def test_vmap_over_dense_attention_that_learns(dtype, biased):
    """In half precision too, and with a bias for each sample, which then learns."""
    given = [t.to(dtype).expand(3, *t.shape[1:]).clone().requires_grad_() for t in (Q, K, V, BIAS)][
        : 4 if biased else 3
    ]

    def attention(q, k, v, bias=None):
        return attend(q[None], k[None], v[None], bias=None if bias is None else bias[None])[0]

    found = vmap(attention)(*given)
    exact = [t.detach().double().requires_grad_() for t in given]
    expected = attend_reference(*exact[:3], None, *exact[3:])
    tolerance = 1e-5 if dtype == torch.float32 else 3e-2
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=tolerance)
    grads = torch.autograd.grad(found.double().sum() + found.double()[0].square().sum(), given)
    wanted = torch.autograd.grad(expected.sum() + expected[0].square().sum(), exact)
    for one, other in zip(grads, wanted, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=0, atol=10 * tolerance)
