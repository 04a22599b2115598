"""Heads of queries that share a head of keys and values: as if it were copied for each of them."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from core import Attention, Encoder, EncoderConfig, Relation, Tokens, UserError
from core.attention.packing import Packing, Place
from core.attention.rotary import rotary_table
from core.encoder.pack import pack, unpack
from core.sparse import Local

DIM, HEADS, KV_HEADS, LENGTH = 24, 6, 2, 40


def copied(weight, width):
    """The weight of a projection to KV_HEADS heads, for HEADS heads."""
    heads = weight.unflatten(0, (KV_HEADS, width))
    return torch.cat([heads[number * KV_HEADS // HEADS] for number in range(HEADS)])


def pair(**options):
    """Grouped attention, and a full one whose heads of keys and values are copies; both in double precision."""
    torch.manual_seed(0)
    grouped = Attention(DIM, HEADS, kv_heads=KV_HEADS, **options).double().eval()
    full = Attention(DIM, HEADS, **options).double().eval()
    state, width = grouped.state_dict(), grouped.sizes[0] // HEADS
    for name in ("qkv.weight", "qkv.bias", "kv.weight", "kv.bias"):
        if name in state:
            *q, k, v = state[name].split(grouped.sizes[-2:] if name.startswith("kv") else grouped.sizes)
            state[name] = torch.cat([*q, copied(k, width), copied(v, width)])
    full.load_state_dict(state)
    return grouped, full


CALLS = {
    "dense": {},
    "a mask of keys": {"mask": torch.arange(LENGTH) < torch.tensor([[LENGTH], [7]])},
    "a mask of pairs": {"mask": torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril()[None, None]},
    "a bias of each head": {"bias": torch.linspace(-1, 1, HEADS).double()[None, :, None, None]},
    "a pattern": {"pattern": Local(8, exact=True)},
    "a row": {"packing": Packing.of([Place(30), Place(1), Place(9)])},
    "a pattern in a row": {"packing": Packing.of([Place(30), Place(10)]), "pattern": Local(8)},
}


@pytest.mark.parametrize("options", [{}, {"head_dim": 10}, {"qk_norm": torch.nn.LayerNorm}], ids=str)
@pytest.mark.parametrize("name", CALLS)
def test_the_same_as_with_copies(name, options):
    grouped, full = pair(**options)
    batch = 1 if "packing" in CALLS[name] else 2
    x = torch.randn(batch, LENGTH, DIM, dtype=torch.float64, requires_grad=True)
    rotary = rotary_table(options.get("head_dim", DIM // HEADS), LENGTH)
    results = []
    for module in (grouped, full):
        out = module(x, relation=Relation(**CALLS[name]), rotary=rotary)
        results.append((out, *torch.autograd.grad(out.square().sum(), x)))
    torch.testing.assert_close(*results, rtol=1e-10, atol=1e-10)


def test_cross_attention():
    grouped, full = pair(context_dim=12)
    x, context = torch.randn(2, 5, DIM).double(), torch.randn(2, 9, 12).double()
    torch.testing.assert_close(grouped(x, context), full(x, context), rtol=1e-10, atol=1e-10)


def test_only_the_projection_becomes_cheaper():
    grouped, full = pair()
    counts = []
    for module in (grouped, full):
        with FlopCounterMode(display=False) as counter:
            module(torch.randn(2, LENGTH, DIM).double())
        counts.append(counter.get_total_flops())
    saved = full.qkv.out_features - grouped.qkv.out_features
    assert counts[1] - counts[0] == 2 * 2 * LENGTH * DIM * saved and saved == 2 * (HEADS - KV_HEADS) * DIM // HEADS


def test_heads_that_cannot_be_shared_out_are_named():
    with pytest.raises(UserError, match="6 heads cannot be shared out to 4 kv_heads evenly"):
        Encoder(EncoderConfig(dim=DIM, depth=1, heads=6, kv_heads=4))


def test_an_encoder_over_sequences_in_a_row():
    torch.manual_seed(0)
    model = Encoder(EncoderConfig(dim=DIM, depth=2, heads=6, kv_heads=2, rotary="1d")).eval()
    given = [Tokens(torch.randn(1, length, DIM)) for length in (5, 1, 33)]
    for alone, beside in zip(given, unpack(model(pack(given))), strict=True):
        torch.testing.assert_close(beside.x, model(alone).x)
