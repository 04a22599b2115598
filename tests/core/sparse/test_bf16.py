"""bf16 tensors in the C++ kernel: products of pairs of bf16 where the processor has them, else in float."""

import pytest
import torch
import torch.nn.functional as F

from core.sparse import Causal, Global, Local, native
from core.sparse.call import KernelCall
from core.sparse.plan import make_plan, whole_plan

PAIRS = pytest.mark.skipif(not native.computes(torch.bfloat16), reason="for processors with AVX-512 for bf16")


def tensors(n: int, m: int, c: int, e: int, seed: int = 0) -> list[torch.Tensor]:
    """q, k, v and the gradient of the output."""
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(2, 3, *shape, generator=generator).to(torch.bfloat16) for shape in ((n, c), (m, c), (m, e), (n, e))
    ]


def both_passes(call: KernelCall, grad: torch.Tensor, learns: bool = False) -> list[torch.Tensor]:
    """Output and gradients, also of the bias if it learns."""
    out, lse, finite = native.forward(call)
    *grads, finite_too = native.backward(call, grad, out, lse, learns)
    assert finite and finite_too
    return [t for t in (out, *grads) if t is not None]


def exactly(call: KernelCall, grad: torch.Tensor, learns: bool = False) -> list[torch.Tensor]:
    """The same, of the same numbers in double precision."""
    q, k, v, grad = (t.double() for t in (call.q, call.k, call.v, grad))
    bias = None if call.bias is None else call.bias.double()
    return both_passes(call._replace(q=q, k=k, v=v, bias=bias), grad, learns)


def torchs(call: KernelCall, grad: torch.Tensor) -> list[torch.Tensor]:
    q, k, v = (t.clone().requires_grad_() for t in (call.q, call.k, call.v))
    bias = None if call.bias is None else call.bias.to(q.dtype)
    out = F.scaled_dot_product_attention(q, k, v, bias, scale=call.scale)
    return [out.detach(), *torch.autograd.grad(out, (q, k, v), grad)]


@pytest.mark.parametrize("bias", [False, True], ids=["", "a bias"])
@pytest.mark.parametrize("scale", [0.3, -0.2])
@pytest.mark.parametrize(
    "n, m, c",
    [(197, 197, 64), (300, 129, 64), (33, 70, 17), (1, 1, 1), (130, 261, 81)],
    ids=lambda size: str(size),
)
def test_the_error_is_at_most_twice_that_of_torchs_kernel(n, m, c, scale, bias):
    """Odd numbers of queries, keys and features: the last of each is half of a pair."""
    q, k, v, grad = tensors(n, m, c, c)
    pairs = torch.randn(1, 3, n, m, generator=torch.Generator().manual_seed(1)).bfloat16().float() if bias else None
    call = KernelCall(q, k, v, whole_plan(n, m), scale, None, pairs)
    exact = exactly(call, grad)
    for mine, theirs, expected in zip(both_passes(call, grad), torchs(call, grad), exact, strict=True):
        error, bound = ((t.double() - expected).abs().max() for t in (mine, theirs))
        assert error <= 2 * bound


CALLS = {
    "a mask": {"key_mask": torch.arange(300)[None] % 7 > 0},
    "dropout": {"dropout": 0.3, "seed": 5},
    "a bias that learns": {"bias": torch.randn(1, 3, 300, 300, generator=torch.Generator().manual_seed(1))},
}


@PAIRS
@pytest.mark.parametrize("pattern", [None, Local(70), Causal() | Global(3)], ids=str)
@pytest.mark.parametrize("name", CALLS)
def test_it_differs_from_double_precision_by_rounding_only(name, pattern):
    q, k, v, grad = tensors(300, 300, 24, 40)
    plan = whole_plan(300, 300) if pattern is None else make_plan(pattern, 300)
    call, learns = KernelCall(q, k, v, plan, 0.2, **CALLS[name]), "bias" in CALLS[name]
    found = both_passes(call, grad, learns)
    assert len(found) == (5 if learns else 4)
    for mine, expected in zip(found, exactly(call, grad, learns), strict=True):
        assert mine.dtype == (torch.float32 if mine.shape[2:] == (300, 300) else torch.bfloat16)
        assert (mine.double() - expected).abs().max() <= 2**-7 * expected.abs().max()


@PAIRS
def test_rows_anywhere_in_memory_give_the_same():
    q, k, v, grad = tensors(150, 150, 23, 23)
    call = KernelCall(q, k, v, whole_plan(150, 150), 0.2)
    expected = both_passes(call, grad)

    def moved(t: torch.Tensor) -> list[torch.Tensor]:
        beside = torch.full((2, 3, 150, 1), torch.nan, dtype=t.dtype)
        return [t.transpose(1, 2).contiguous().transpose(1, 2), torch.cat([beside, t, beside], 3)[..., 1:-1]]

    for way in range(2):
        q, k, v, others = (moved(t)[way] for t in (*call[:3], grad))
        found = both_passes(call._replace(q=q, k=k, v=v), others)
        assert all(torch.equal(mine, before) for mine, before in zip(found, expected, strict=True))


@PAIRS
def test_the_number_of_threads_changes_no_output(monkeypatch):
    q, k, v, _ = tensors(400, 400, 64, 64)
    call = KernelCall(q, k, v, whole_plan(400, 400), 0.2)
    outs = []
    for threads in (1, 3):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        outs.append(native.forward(call)[0])
    assert torch.equal(*outs)


@pytest.mark.parametrize("number", [torch.nan, torch.inf])
def test_what_is_not_finite_is_reported(number):
    q, k, v, grad = tensors(70, 70, 16, 16)
    call = KernelCall(q, k, v, whole_plan(70, 70), 0.2)
    out, lse, _ = native.forward(call)
    for spoilt in ("k", "v"):
        bad = getattr(call, spoilt).clone()
        bad[1, 2, 69, 15] = number
        assert not native.forward(call._replace(**{spoilt: bad}))[2]
        hidden = call._replace(**{spoilt: bad}, key_mask=torch.arange(70)[None] < 69)
        assert native.forward(hidden)[2] and native.backward(hidden, grad, out, lse)[-1]


@PAIRS
def test_without_the_instructions_it_is_computed_in_float(monkeypatch):
    q, k, v, grad = tensors(100, 100, 32, 32)
    call = KernelCall(q, k, v, whole_plan(100, 100), 0.2)
    in_pairs = both_passes(call, grad)
    monkeypatch.setattr(native, "computes", lambda dtype: dtype != torch.bfloat16)
    in_float = both_passes(call, grad)
    single = both_passes(call._replace(q=q.float(), k=k.float(), v=v.float()), grad.float())
    assert torch.equal(in_float[0], single[0].bfloat16()) and not torch.equal(in_pairs[0], in_float[0])
    for mine, other in zip(in_pairs, in_float, strict=True):
        assert (mine - other).abs().max() <= 2**-6 * other.abs().max()
    assert "bfloat16 in float32 here" in native.slower_than_torch(torch.bfloat16)
