import inspect
from dataclasses import replace

import pytest
import torch
from encoder_variants import SMALL, VARIANTS
from torch import nn

from core import Encoder, EncoderConfig, Tokens, UserError, from_dict, share, to_dict


def tokens(batch=2, masked=False, dtype=torch.float32, seed=0):
    x = torch.randn(batch, 1 + 12, 32, generator=torch.Generator().manual_seed(seed)).to(dtype)
    mask = None
    if masked:
        mask = torch.ones(batch, 13, dtype=torch.bool)
        mask[0, 8:] = False
    return Tokens(x, mask=mask, grid=(3, 4), prefix=1)


def encoder(config, seed=0):
    torch.manual_seed(seed)
    return Encoder(config)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_runs_trains_and_keeps_its_tokens(name, masked):
    model, given = encoder(VARIANTS[name]).train(), tokens(masked=masked)
    out = model(given)
    assert (out.grid, out.prefix, out.x.shape) == ((3, 4), 1, given.x.shape)
    out.x.square().sum().backward()
    for key, parameter in model.named_parameters():
        # With drop path a branch may have been skipped; all others must learn.
        assert parameter.grad is not None and parameter.grad.isfinite().all(), key


@pytest.mark.parametrize("name", ["pre", "rotary 2d"])
def test_intermediate_layers_are_those_of_a_shorter_encoder(name):
    config, given = replace(VARIANTS[name], drop_path=0.0), tokens(masked=True)
    model = encoder(config).eval()
    calls = []
    model.blocks[0].register_forward_hook(lambda *_: calls.append(1))
    found = model.intermediate(given, (-1, 0), norm=True)
    assert torch.equal(found[0].x, model(given).x)
    assert (found[1].grid, found[1].prefix) == (given.grid, given.prefix)
    calls.clear()
    (first,) = model.intermediate(given, (0,))
    assert len(calls) == 1 and torch.equal(model.final_norm(first.x)[given.mask], found[1].x[given.mask])
    assert not first.x[~given.mask].any() and not found[1].x[~given.mask].any()
    assert torch.equal(first.maps, first.x[:, 1:].transpose(1, 2).reshape(2, 32, 3, 4))
    with pytest.raises(UserError, match=f"numbers from -{config.depth} to {config.depth - 1}"):
        model.intermediate(given, (config.depth,))


@pytest.mark.parametrize("name", ["rotary 1d", "rotary 2d", "rotary 2d unit"])
def test_without_positions_order_is_nothing_and_with_rotary_it_is(name):
    shuffled = torch.cat([torch.tensor([0]), 1 + torch.randperm(12, generator=torch.Generator().manual_seed(0))])
    given = tokens()
    permuted = given.with_x(given.x[:, shuffled])
    without, model = encoder(VARIANTS["pre"]).eval(), encoder(VARIANTS[name]).eval()
    for each in (without, model):
        each.blocks[0].attention.qkv.weight.data.mul_(20)  # with new weights all keys look alike
    torch.testing.assert_close(without(permuted).x, without(given).x[:, shuffled], rtol=1e-5, atol=1e-5)
    assert not torch.allclose(model(permuted).x, model(given).x[:, shuffled], atol=1e-3)


def test_post_norm_equals_torchs_encoder_layer():
    """A BERT block is nn.TransformerEncoderLayer's default."""
    config = EncoderConfig(dim=32, depth=1, heads=4, mlp_dim=64, norm_order="post", norm_eps=1e-5)
    ours = encoder(config).eval()
    peer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0, activation="gelu", batch_first=True).eval()
    block = ours.blocks[0]
    with torch.no_grad():
        for p in ours.parameters():
            p.add_(torch.randn_like(p) * 0.1)
        peer.self_attn.in_proj_weight.copy_(block.attention.qkv.weight)
        peer.self_attn.in_proj_bias.copy_(block.attention.qkv.bias)
    peer.self_attn.out_proj.load_state_dict(block.attention.out.state_dict())
    peer.linear1.load_state_dict(block.mlp.up.state_dict())
    peer.linear2.load_state_dict(block.mlp.down.state_dict())
    peer.norm1.load_state_dict(block.attention_norm.state_dict())
    peer.norm2.load_state_dict(block.mlp_norm.state_dict())
    x = torch.randn(2, 7, 32)
    torch.testing.assert_close(ours(Tokens(x)).x, peer(x), rtol=1e-5, atol=1e-5)


def test_bias_reaches_every_block():
    model = encoder(SMALL).eval()
    given = tokens()
    causal = torch.full((1, 1, 13, 13), -torch.inf).triu(1)
    cut = given.with_x(torch.cat([given.x[:, :6], torch.randn(2, 7, 32)], 1))
    torch.testing.assert_close(model(given, causal).x[:, :6], model(cut, causal).x[:, :6])
    assert not torch.allclose(model(given, causal).x, model(given).x)


def test_drop_path_skips_whole_branches_without_bias():
    model = encoder(replace(SMALL, depth=2, drop_path=0.5))
    branch = model.blocks[1].mlp_branch
    out = branch.train()(torch.ones(4000, 1, 1))
    assert set(out.flatten().tolist()) == {0.0, 2.0}
    assert abs(out.mean().item() - 1) < 0.1
    assert model.blocks[0].mlp_branch.drop_path == 0


def test_config_round_trip():
    for config in VARIANTS.values():
        assert from_dict(EncoderConfig, to_dict(config)) == config


def test_rotary_on_a_grid_needs_a_grid():
    with pytest.raises(UserError, match="needs tokens with a grid"):
        encoder(VARIANTS["rotary 2d"])(Tokens(torch.randn(1, 4, 32)))


def test_tokens_check_their_grid():
    with pytest.raises(ValueError, match="1 prefix tokens and a grid of 3 x 4 do not make 12 tokens"):
        inspect.unwrap(Tokens)(torch.randn(1, 12, 8), grid=(3, 4), prefix=1)


@pytest.mark.parametrize("setting", [{"activation": ("gelu", "relu")}, {"mlp_dim": (32, 64)}])
def test_layers_that_share_weights_have_the_same_settings(setting):
    config = EncoderConfig(dim=16, depth=4, heads=2, **setting)
    with pytest.raises(UserError, match=f"layers that share weights need one {next(iter(setting))}"):
        Encoder(replace(config, shared_groups=2))
    with pytest.raises(UserError, match="layers that share weights need one"):
        share(Encoder(config), 2)
    Encoder(replace(config, shared_groups=4))
