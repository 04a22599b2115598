"""What the conformance kit (tests/test_conformance.py) does not check of attention, on the dense backends."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from core import (
    Attention,
    Relation,
    UserError,
    attend,
    attend_reference,
    attention_backend,
    attention_rollout,
    record_attention,
)
from core.attention import rotary_table
from core.sparse import Window2d

BACKENDS = ["dense", "reference"]


@pytest.fixture(params=BACKENDS, autouse=True)
def backend(request):
    with attention_backend(request.param):
        yield request.param


def qkv(b=2, h=3, n=5, m=7, c=8, dtype=torch.float64, seed=0, grad=False):
    generator = torch.Generator().manual_seed(seed)
    shapes = [(b, h, n, c), (b, h, m, c), (b, h, m, c)]
    return [torch.randn(s, generator=generator, dtype=torch.float64).to(dtype).requires_grad_(grad) for s in shapes]


def key_mask(b, m, seed=0):
    return torch.rand(b, m, generator=torch.Generator().manual_seed(seed)) > 0.4


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_agrees_with_plain_softmax(data):
    """Against attention written out once more, for all shapes of mask and bias."""
    draw = data.draw
    b, h, n, m, c = (draw(st.integers(1, high)) for high in (3, 3, 6, 9, 9))
    q, k, v = qkv(b, h, n, m, c, seed=draw(st.integers(0, 99)))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    mask_shape = draw(st.sampled_from([None, (b, m), (b, 1, 1, m), (1, h, n, m), (b, h, n, m), (1, 1, n, 1)]))
    bias_shape = draw(st.sampled_from([None, (1, h, n, m), (b, 1, n, m), (b, h, 1, m)]))
    mask = None if mask_shape is None else torch.rand(mask_shape, generator=generator) > 0.3
    bias = None if bias_shape is None else torch.randn(bias_shape, generator=generator, dtype=torch.float64)

    logits = q @ k.transpose(-1, -2) / c**0.5 + (0 if bias is None else bias)
    if mask is not None:
        logits = logits.masked_fill(~(mask[:, None, None] if mask.ndim == 2 else mask), -torch.inf)
    expected = logits.softmax(-1).nan_to_num(0) @ v
    torch.testing.assert_close(attend(q, k, v, mask=mask, bias=bias), expected, rtol=1e-10, atol=1e-12)


def test_poison_reaches_those_who_attend_to_it():
    q, k, v = qkv()
    v[:, :, 3] = torch.nan
    mask = torch.ones(1, 1, 5, 7, dtype=torch.bool)
    mask[..., :2, 3] = False
    out = attend(q, k, v, mask=mask)
    assert out[:, :, :2].isfinite().all()
    assert out[:, :, 2:].isnan().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_error_without_a_mask(dtype):
    """At most twice the error of plain dense attention of the same dtype."""
    q, k, v = qkv(n=64, m=64, c=32, dtype=dtype)
    exact = attend_reference(q.double(), k.double(), v.double())
    plain = F.scaled_dot_product_attention(q, k, v)
    error, bound = ((x.double() - exact).abs().max() for x in (attend(q, k, v), plain))
    assert error <= 2 * bound


def test_backend_can_be_asked_and_forced(backend):
    with record_attention() as calls:
        attend(*qkv())
    assert [call.backend for call in calls] == [backend]
    torch.testing.assert_close(calls[0].weights.sum(-1), torch.ones(2, 3, 5, dtype=torch.float64))
    with pytest.raises(ValueError, match="Unknown attention backend 'fast': choose one of dense"):
        with attention_backend("fast"):
            pass


def test_a_forced_backend_that_cannot_serve_says_so():
    with (
        attention_backend("reference"),
        pytest.raises(ValueError, match=r"reference backend cannot serve.*no dropout"),
    ):
        attend(*qkv(), dropout=0.5)


def test_cross_attention_is_attention_to_the_context():
    torch.manual_seed(0)
    module = Attention(16, 4, context_dim=12, head_dim=8, qk_norm=torch.nn.LayerNorm).double()
    x, context = torch.randn(2, 3, 16).double(), torch.randn(2, 5, 12).double()
    mask = key_mask(2, 5)
    q = module.q_norm(module.q(x).view(2, 3, 4, 8).transpose(1, 2))
    k, v = module.kv(context).view(2, 5, 2, 4, 8).permute(2, 0, 3, 1, 4)
    expected = attend_reference(q, module.k_norm(k), v, mask[:, None, None]).transpose(1, 2).flatten(2)
    torch.testing.assert_close(module(x, context, mask), module.out(expected))


def test_queries_and_keys_are_normed_as_wholes():
    torch.manual_seed(0)
    module = Attention(16, 4, qk_norm=torch.nn.LayerNorm, qk_norm_whole=True).double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn_like(parameter))
    x = torch.randn(2, 5, 16).double()
    q, k, v = module.qkv(x).chunk(3, dim=-1)
    heads = (t.view(2, 5, 4, 4).transpose(1, 2) for t in (module.q_norm(q), module.k_norm(k), v))
    expected = attend_reference(*heads).transpose(1, 2).flatten(2)
    torch.testing.assert_close(module(x), module.out(expected))
    with pytest.raises(UserError, match="qk_norm_whole needs qk_norm"):
        Attention(16, 4, qk_norm_whole=True)


def test_a_relation_is_everything_that_says_who_may_attend_to_whom():
    torch.manual_seed(0)
    module, x = Attention(16, 2).double(), torch.randn(2, 13, 16).double()
    mask, bias, pattern = key_mask(2, 13), torch.randn(1, 2, 13, 13).double(), Window2d(1, exact=True)
    q, k, v = module.qkv(x).view(2, 13, 3, 2, 8).permute(2, 0, 3, 1, 4)
    allowed = pattern.dense((3, 4), prefix=1) & mask[:, None, None]
    expected = module.out(attend_reference(q, k, v, allowed, bias).transpose(1, 2).flatten(2))
    relation = Relation(mask, bias, pattern, prefix=1, grid=(3, 4))
    torch.testing.assert_close(module(x, relation=relation), expected)
    assert torch.equal(relation.allowed(q, k), allowed)
    with pytest.raises(ValueError, match="give the mask as part of the relation"):
        module(x, mask=mask, relation=relation)


def test_self_attention_equals_multihead_attention():
    torch.manual_seed(0)
    ours, peer = Attention(24, 3).eval(), torch.nn.MultiheadAttention(24, 3, batch_first=True).eval()
    with torch.no_grad():
        peer.in_proj_weight.copy_(ours.qkv.weight)
        peer.in_proj_bias.copy_(ours.qkv.bias)
        peer.out_proj.load_state_dict(ours.out.state_dict())
    x, mask = torch.randn(2, 7, 24), key_mask(2, 7)
    mask[:, 0] = True
    expected, _ = peer(x, x, x, key_padding_mask=~mask)
    torch.testing.assert_close(ours(x, mask=mask), expected, rtol=1e-5, atol=1e-6)


def test_indivisible_width_is_refused():
    with pytest.raises(UserError, match="dim 10 is not divisible by 4 heads"):
        Attention(10, 4)


def test_rollout_keeps_each_rows_sum():
    weights = [torch.rand(2, 3, 5, 5).softmax(-1) for _ in range(4)]
    flow = attention_rollout(weights)
    torch.testing.assert_close(flow.sum(-1), torch.ones(2, 5))
    identity = torch.eye(5).expand(2, 3, 5, 5)
    torch.testing.assert_close(attention_rollout([identity] * 3), torch.eye(5).expand(2, 5, 5))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["plain", "keys", "bias"])
@pytest.mark.parametrize("n", [37, 197, 330])
def test_half_precision_gradients(dtype, kind, n, backend):
    """At most twice the error of torch's own half-precision attention; on a CPU short ones have a backward of ours."""
    if backend == "reference":
        return
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(2, 3, n, 32, generator=generator).to(dtype) for _ in range(4)]
    mask = key_mask(2, n) if kind == "keys" else None
    bias = torch.randn(1, 3, n, n, generator=generator).to(dtype) if kind == "bias" else None
    pairs = mask[:, None, None] if mask is not None else bias

    def gradients(function, *inputs):
        inputs = [t.clone().requires_grad_() for t in inputs]
        function(*inputs).backward(tensors[3].to(inputs[0].dtype))
        return torch.stack([t.grad.double() for t in inputs])

    double = None if bias is None else bias.double()
    exact = gradients(lambda q, k, v: attend(q, k, v, mask=mask, bias=double), *(t.double() for t in tensors[:3]))
    ours = gradients(lambda q, k, v: attend(q, k, v, mask=mask, bias=bias), *tensors[:3])
    torchs = gradients(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, attn_mask=pairs), *tensors[:3])
    assert (ours - exact).abs().max() <= 2 * (torchs - exact).abs().max()


def test_a_context_is_neither_ignored_nor_missing():
    x = torch.randn(2, 5, 24)
    with pytest.raises(UserError, match="made without context_dim, and takes no context"):
        Attention(24, 2)(x, x)
    crossing = Attention(24, 2, context_dim=24)
    with pytest.raises(UserError, match="this module needs a context"):
        crossing(x)
    with pytest.raises(UserError, match="rotary positions are for self-attention"):
        crossing(x, x, rotary=rotary_table(12, 5))
