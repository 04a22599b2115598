"""The operators and the kernel, called without `attend`: they too refuse every wrong argument."""

from dataclasses import replace

import pytest
import torch

from core import attend, attend_reference, attention_backend
from core.sparse import Local, make_plan, native
from core.sparse.call import KernelCall

pytestmark = pytest.mark.usefixtures("as_in_production")


def tensors(dtype=torch.float32):
    return torch.randn(3, 2, 3, 70, 8).to(dtype).unbind()


Q, K, V = tensors()
operators = torch.ops.trivium


def settings(kernel="native", *, pattern="Local(16)", place=(0, 0, 0), scale=0.3, dropout=0.0):
    return pattern, list(place), [scale, dropout], kernel


def forward(q=Q, k=K, v=V, *, mask=None, bias=None, **how):
    return operators.sparse_attention(q, k, v, bias, mask, *settings(**how))


def backward(grad, results, *, kernel="native"):
    return operators.sparse_attention_backward(grad, *results, Q, K, V, None, None, *settings(kernel))


@pytest.mark.parametrize("kernel", ["native", "blockwise"])
@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_the_operators_keep_to_what_torch_asks_of_one(kernel, dropout):
    """Schema, gradients and shapes without memory; with dropout two runs differ, so their results are not compared."""
    q, k, v, mask = *(t.clone().requires_grad_() for t in (Q, K, V)), torch.rand(2, 70) > 0.2
    given = [q, k, v, torch.randn(1, 3, 70, 70, requires_grad=True)]
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    tests += () if dropout else ("test_aot_dispatch_dynamic",)
    how = settings(kernel, dropout=dropout)
    torch.library.opcheck(operators.sparse_attention, (*given, mask, *how), test_utils=tests)
    results = [t.detach() for t in operators.sparse_attention(*given, mask, *how)]
    saved = [torch.ones_like(Q), *results, *(t.detach() for t in given)]
    torch.library.opcheck(operators.sparse_attention_backward, (*saved, mask, *how))
    torch.library.opcheck(operators.sparse_attention_backward_with_bias, (*saved, mask, *how))


@pytest.mark.parametrize("kernel", ["native", "blockwise"])
@pytest.mark.parametrize(
    "wrong, problem",
    [
        ({"k": K[:, :1]}, "k of shape"),
        ({"k": K.double()}, "k is torch.float64"),
        ({"k": K[:, :, :60], "v": V[:, :, :60]}, "70 queries meet 60 keys"),
        ({"v": V[:, :, :60]}, "v of shape"),
        ({"q": Q.to("meta")}, "k is on cpu, but q is on meta"),
        ({"place": (-1, 0, 0)}, "prefix must be"),
        ({"place": (0, 0)}, "unpack"),
        ({"place": (0, -7, -10)}, "grid must be"),
        ({"place": (0, 0, 5)}, "grid must be"),
        ({"place": (0, 2**40, 2**40)}, "do not make 70 tokens"),
        ({"mask": torch.ones(2, 69, dtype=torch.bool)}, "mask of shape"),
        ({"mask": torch.ones(2, 1, 1, 70, dtype=torch.bool)}, "mask must have the axes"),
        ({"dropout": 2.0}, "dropout must be"),
        ({"scale": float("nan")}, "scale must be"),
        ({"kernel": "fast"}, "kernel must be one of blockwise, native"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else "",
)
def test_the_operator_refuses_what_attend_would(wrong, problem, kernel):
    with pytest.raises(ValueError, match=problem):
        forward(**{"kernel": kernel} | wrong)


def test_only_the_native_kernel_needs_no_pattern():
    with pytest.raises(ValueError, match="the kernel 'blockwise' needs a pattern"):
        forward(pattern="", kernel="blockwise")


@pytest.mark.parametrize("kernel", ["native", "blockwise"])
def test_the_backward_operator_takes_what_the_forward_one_gave(kernel):
    out, lse, seed = forward(kernel=kernel)
    for grad, *results in (
        (out[:, :1], out, lse),
        (out, out[..., :4], lse),
        (out, out, lse[:, :, :60]),
        (out, out, lse.double()),
        (out.double(), out, lse),
        (out.to("meta"), out, lse),
    ):
        with pytest.raises(ValueError, match=r"(grad|out|lse) must be"):
            backward(grad, [*results, seed], kernel=kernel)


PLAN = make_plan(Local(16), 70)


@pytest.mark.parametrize(
    "wrong",
    [
        {"q": Q[0]},
        {"k": K[:, :1]},
        {"k": K.double()},
        {"k": K.long()},
        {"v": V[:, :, :69]},
        {"v": V.to("meta")},
        {"q": Q.long(), "k": K.long(), "v": V.long()},
        {"q": Q[:, :, :0], "k": K[:, :, :0], "v": V[:, :, :0]},
        {"key_mask": torch.ones(3, 70, dtype=torch.bool)},
        {"key_mask": torch.ones(70, dtype=torch.bool)},
        {"key_mask": torch.ones(2, 70)},
        {"plan": make_plan(Local(16), 69)},
        {"scale": float("nan")},
        {"dropout": -0.5},
        {"bias": torch.zeros(1, 1, 70, 69)},
        {"bias": torch.zeros(70, 70)},
    ],
    ids=" ".join,
)
def test_the_kernel_reads_only_what_is_there(wrong):
    call = KernelCall(Q, K, V, PLAN, 0.3)._replace(**wrong)
    with pytest.raises(ValueError, match="native kernel"):
        native.forward(call)
    out = torch.zeros_like(Q)
    with pytest.raises(ValueError, match="native kernel"):
        native.backward(call, out, out, out[..., 0])


def test_the_kernel_reads_no_memory_that_was_freed():
    q = Q.clone()
    q.untyped_storage().resize_(0)
    with pytest.raises(ValueError, match="q: its memory has been freed"):
        native.forward(KernelCall(q, K, V, PLAN, 0.3))


@pytest.mark.parametrize("change", ["columns", "rows", "index", "num_global", "mask"])
def test_the_kernel_takes_no_plan_that_contradicts_itself(change):
    plan = make_plan(Local(16, exact=True), 70, 1)
    group = plan.groups[0]
    wrong = {
        "columns": {"groups": (replace(group, columns=group.columns + 1000), *plan.groups[1:])},
        "rows": {"groups": (group, *plan.groups)},
        "index": {"index": plan.index + 1},
        "num_global": {"num_global": plan.num_global + 1},
        "mask": {"groups": (replace(group, mask=torch.ones(1, 1, 3, dtype=torch.bool)), *plan.groups[1:])},
    }
    with pytest.raises(ValueError, match="contradicts itself"):
        native.forward(KernelCall(Q, K, V, replace(plan, **wrong[change]), 0.3))


STRIDES = {
    "far apart": lambda t: t[:1, :1, :1].as_strided((1, 1, 1, 8), (2**40, 2**41, 2**42, 1)),
    "one token": lambda t: t[:, :, :1].as_strided((2, 3, 1, 8), (*t.stride()[:2], 0, 1)),
    "one feature": lambda t: t[..., :1].as_strided((2, 3, 70, 1), (*t.stride()[:3], 2**40)),
    "features apart": lambda t: t.repeat_interleave(3, dim=3)[..., ::3],
    "features outside": lambda t: t.mT.contiguous().mT,
    "one for all tokens": lambda t: t[:, :, :1].expand(t.shape),
    "one for all features": lambda t: t[..., :1].expand(t.shape),
    "one for all heads": lambda t: t[:, :1].expand(t.shape),
    "negated in name only": lambda t: torch._neg_view(t),
}


@pytest.mark.parametrize("strides", STRIDES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("backend", ["native", "blockwise", "dense"])
def test_any_strides_are_read_rightly(strides, dtype, backend):
    """Of queries, keys, values and gradients; the kernel alone too."""
    q, k, v, grad = (STRIDES[strides](t).requires_grad_() for t in (*tensors(dtype), *tensors(dtype)[:1]))
    near, error = Local(16).dense(q.shape[2])[None, None], 3e-2 if dtype == torch.bfloat16 else 1e-5
    double = [t.detach().double().requires_grad_() for t in (q, k, v)]
    expected = attend_reference(*double, near)
    exact = expected, *torch.autograd.grad(expected, double, grad.detach().double())
    with attention_backend(backend):
        out = attend(q, k, v, pattern=Local(16))
    found = [(out, *torch.autograd.grad(out, (q, k, v), grad.detach()))]
    if backend == "native":
        q, k, v, grad = (t.detach() for t in (q, k, v, grad))
        call = KernelCall(q, k, v, make_plan(Local(16), q.shape[2]), q.shape[3] ** -0.5)
        out, lse, _ = native.forward(call)
        found.append((out, *native.backward(call, grad, out, lse.mT.contiguous().mT)[:3]))
    for each in found:
        for mine, true in zip(each, exact, strict=True):
            assert (mine.double() - true).abs().max() <= error * true.abs().max().clamp(min=1)
