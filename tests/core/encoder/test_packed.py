"""An encoder gives a sequence in a packed row what it gives it alone, and so do pooling and adapters."""

from dataclasses import replace

import pytest
import torch
from encoder_variants import VARIANTS

from core import AttentionPool, Encoder, EncoderConfig, Tokens, adapters, pool
from core.adapters import Bottleneck, LoRA, Prompt
from core.encoder.pack import pack, unpack
from core.errors import UserError
from core.sparse import Axial, Causal, Global, Local

GRIDS = ((3, 4), (1, 1), (5, 2))


def sequences(on_grid=True, prefix=1, dtype=torch.float64):
    """A few of different sizes, with NaN in none."""
    torch.manual_seed(0)
    sizes = GRIDS if on_grid else ((12,), (1,), (70,))
    grids = [size if on_grid else None for size in sizes]
    lengths = [prefix + (size[0] * size[1] if on_grid else size[0]) for size in sizes]
    return [
        Tokens(torch.randn(1, n, 32, dtype=dtype), grid=grid, prefix=prefix)
        for n, grid in zip(lengths, grids, strict=True)
    ]


def compare(module, given, read=lambda tokens: tokens):
    """Outputs, and gradients of weights and inputs, of sequences packed and alone."""
    results = []
    for run in (lambda xs: unpack(module(pack(xs))), lambda xs: [module(x) for x in xs]):
        xs = [tokens.with_x(tokens.x.detach().clone().requires_grad_()) for tokens in given]
        outs = run(xs)
        upstream = [torch.randn(out.x.shape, generator=torch.Generator().manual_seed(9)).double() for out in outs]
        loss = sum((out.x * weight).sum() for out, weight in zip(outs, upstream, strict=True))
        learned = [*(p for p in module.parameters() if p.requires_grad), *(tokens.x for tokens in xs)]
        results.append([*(out.x for out in outs), *torch.autograd.grad(loss, learned)])
        assert [(out.grid, out.prefix) for out in outs] == [(tokens.grid, tokens.prefix) for tokens in given]
    for packed, alone in zip(*results, strict=True):
        torch.testing.assert_close(packed, alone, rtol=1e-10, atol=1e-10)


def perturbed(module):
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return module.double().eval()


SPARSE = {
    "Local": replace(VARIANTS["rotary 1d"], patterns=(Local(16), Local(64) | Global(1))),
    "causal": replace(VARIANTS["pre"], patterns=Causal()),
    "gated biases by distance": replace(VARIANTS["gated biases by distance"], patterns=Local(4, exact=True)),
    "Axial": replace(VARIANTS["rotary 2d"], patterns=Axial()),
}


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", [*VARIANTS, *SPARSE])
def test_every_variant_gives_a_packed_sequence_what_it_gives_it_alone(name, checkpointing):
    config = replace((VARIANTS | SPARSE)[name], checkpointing=checkpointing)
    on_grid = config.rotary == "2d" or config.relative_bias is not None
    for prefix in (0, 2):
        compare(perturbed(Encoder(config)), sequences(on_grid, prefix))


@pytest.mark.parametrize("adapter", [Prompt(tokens=3), LoRA(rank=2), Bottleneck(width=4)], ids=str)
def test_adapters_take_packed_rows(adapter):
    module = perturbed(adapters.add(Encoder(VARIANTS["rotary 2d"]), adapter))
    compare(module, sequences())


def test_a_bias_of_each_sequence():
    module, given = perturbed(Encoder(VARIANTS["pre"])), sequences()
    bias = [torch.randn(1, 4, tokens.x.shape[1], tokens.x.shape[1]).double() for tokens in given]
    for out, tokens, own in zip(unpack(module(pack(given), bias)), given, bias, strict=True):
        torch.testing.assert_close(out.x, module(tokens, own).x)


@pytest.mark.parametrize("how", ["cls", "prefix", "mean", "max", "last", "attention"])
@pytest.mark.parametrize("prefix", [1, 2])
def test_pooling_reduces_each_sequence(how, prefix):
    config = EncoderConfig(dim=32, heads=4)
    pooled = perturbed(AttentionPool(config)) if how == "attention" else lambda tokens: pool(tokens, how)
    given = sequences(prefix=prefix)
    given.append(Tokens(torch.randn(1, prefix, 32).double(), prefix=prefix))  # an empty body
    results = []
    for run in (lambda xs: pooled(pack(xs)), lambda xs: torch.cat([pooled(x) for x in xs])):
        xs = [tokens.with_x(tokens.x.clone().requires_grad_()) for tokens in given]
        out = run(xs)
        weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(9)).double()
        grads = torch.autograd.grad((out * weight).sum(), [x.x for x in xs], materialize_grads=True)
        results.append([out, *grads])
    for packed, alone in zip(*results, strict=True):
        torch.testing.assert_close(packed, alone, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("how", ["cls", "prefix", "mean", "max", "last", "attention"])
def test_nan_in_a_sequence_is_pooled_with_no_other(how):
    pooled = perturbed(AttentionPool(EncoderConfig(dim=32, heads=4))) if how == "attention" else lambda t: pool(t, how)
    given = sequences()
    clean = pooled(pack(given))
    given[1] = given[1].with_x(torch.full_like(given[1].x, torch.nan))
    torch.testing.assert_close(pooled(pack(given))[[0, 2]], clean[[0, 2]])


def test_a_sequence_without_tokens_has_no_first_one():
    row = pack([Tokens(torch.randn(1, 3, 4)), Tokens(torch.randn(1, 0, 4))])
    with pytest.raises(UserError, match="a sequence of the row has no tokens"):
        pool(row, "cls")
    assert (pool(row, "mean")[1] == 0).all() and (pool(row, "max")[1] == 0).all()


def test_drop_path_drops_whole_sequences():
    module = Encoder(EncoderConfig(dim=8, depth=2, heads=2, drop_path=0.5))
    row = pack([Tokens(torch.ones(1, 1 + number % 5, 8)) for number in range(2000)])
    out = module.blocks[1].mlp_branch.train()(row.x, row.packing)
    each = [part[0] for part in out[0].split(row.packing.lengths.tolist())]
    assert all((part == part[0, 0]).all() for part in (o[None] for o in out[0].split(row.packing.lengths.tolist())))
    kept = torch.stack(each)[:, 0]
    assert set(kept.tolist()) == {0.0, 2.0} and abs(kept.mean() - 1) < 0.1


def test_rotary_on_a_grid_needs_a_grid_of_each_sequence():
    row = pack([Tokens(torch.randn(1, 4, 32), grid=(2, 2)), Tokens(torch.randn(1, 4, 32))])
    with pytest.raises(UserError, match="needs tokens with a grid, but sequence 1 of the row has none"):
        Encoder(VARIANTS["rotary 2d"])(row)
