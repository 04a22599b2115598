"""Several sequences in a row on a CUDA device: the same results as each alone, and the backend that is promised."""

import pytest
import torch

from core import Encoder, EncoderConfig, Tokens, attend, explain, pool, record_attention
from core.attention.packing import Packing, Place
from core.encoder.pack import pack, unpack
from core.sparse import Pattern

PLACES = [Place(5), Place(70, 1), Place(1), Place(200), Place(64)]


def row_of(dtype, heads=3, width=32, **options):
    packing = Packing.of(PLACES)
    shape = (1, heads, packing.total, width)
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(shape, generator=generator).to("cuda", dtype).requires_grad_() for _ in range(3)]
    return tensors, packing


@pytest.mark.parametrize("pattern", [None, "Local(64) | Global(1)", "PowersOfTwo() | Global(1)"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_sequence_gets_what_it_gets_alone(dtype, pattern):
    (q, k, v), packing = row_of(dtype)
    parsed = None if pattern is None else Pattern.parse(pattern)
    upstream = torch.randn(q.shape, device="cuda").to(dtype)
    out = attend(q, k, v, pattern=parsed, packing=packing)
    grads = torch.autograd.grad(out, (q, k, v), upstream)
    start, error = 0, (1e-5 if pattern is None else 1e-4) if dtype == torch.float32 else 2e-2
    for place in PLACES:
        own = slice(start, start + place.length)
        start += place.length
        parts = [t[:, :, own].detach().double().requires_grad_() for t in (q, k, v)]
        alone = attend(*parts, pattern=parsed, prefix=place.prefix)
        expected = [alone, *torch.autograd.grad(alone, parts, upstream[:, :, own].double())]
        for mine, true in zip([out, *grads], expected, strict=True):
            torch.testing.assert_close(mine[:, :, own].double(), true, rtol=error, atol=error)


def test_the_backend_that_serves():
    (q, k, v), packing = row_of(torch.bfloat16)
    assert explain(q, k, v, packing=packing).backend == "varlen"
    assert explain(q, k, v, packing=packing, pattern=Pattern.parse("Local(64)")).backend == "flex"
    assert explain(q, k, v, packing=packing, dropout=0.1).backend == "dense"
    (q, k, v), packing = row_of(torch.float32)
    choice = explain(q, k, v, packing=packing)
    assert choice.backend == "dense" and "half precision" in choice.why


@pytest.mark.parametrize("rotary", [None, "1d", "2d"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_an_encoder_gives_each_sequence_what_it_gets_alone(rotary, precision):
    torch.manual_seed(0)
    encoder = Encoder(EncoderConfig(dim=64, depth=2, heads=2, rotary=rotary)).to("cuda")
    grids = [(3, 4), (9, 11), (1, 1), (5, 2)]
    alone = [Tokens(torch.randn(1, 2 + r * c, 64, device="cuda"), grid=(r, c), prefix=2) for r, c in grids]
    with torch.autocast("cuda", torch.bfloat16, enabled=precision == "bf16"), record_attention() as calls:
        packed = encoder(pack(alone))
    assert {call.backend for call in calls} == {"varlen" if precision == "bf16" else "dense"}
    error = 1e-5 if precision == "fp32" else 5e-2
    for mine, tokens in zip(unpack(packed), alone, strict=True):
        with torch.autocast("cuda", torch.bfloat16, enabled=precision == "bf16"):
            expected = encoder(tokens)
        assert mine.grid == tokens.grid
        torch.testing.assert_close(mine.x, expected.x, rtol=error, atol=error)
    pooled = torch.cat([pool(encoder(tokens), "mean") for tokens in alone])
    if precision == "fp32":
        torch.testing.assert_close(pool(packed, "mean"), pooled, rtol=error, atol=error)


def test_nothing_waits_for_the_device():
    """Where sequences lie is known on the host: neither pass reads anything back."""
    torch.manual_seed(0)
    encoder = Encoder(EncoderConfig(dim=64, depth=2, heads=2, rotary="1d")).to("cuda")
    packing = Packing.of(PLACES)
    tokens = Tokens(torch.randn(1, packing.total, 64, device="cuda"), packing=packing)
    with torch.autocast("cuda", torch.bfloat16):
        encoder(tokens)  # what is set up once
        torch.cuda.set_sync_debug_mode("error")
        try:
            pool(encoder(tokens), "mean").sum().backward()
        finally:
            torch.cuda.set_sync_debug_mode("default")
