"""Layers that share weights: adapters of their own, shared and unshared."""

import pytest
import torch
from adapted import disturb, make

from core import EncoderConfig, UserError, adapters, share, unshare
from core.adapters import LoRA
from vision import ViT, ViTConfig


def test_layers_that_share_weights_have_adapters_of_their_own():
    model, inputs = make("vision", "shared")
    adapters.add(model, LoRA(rank=2))
    assert adapters.state(model)["encoder.blocks.0.attention.qkv.up.q"].shape == (2, 32, 2)
    disturb(model)
    with torch.no_grad():
        before = model(*inputs)
        for _, adapter in adapters.modules(model):
            for parameter in adapter.parameters():
                parameter.copy_(parameter.flip(0))  # the layers' adapters change places
        assert (model(*inputs) - before).abs().max() > 1e-4


def test_sharing_divides_what_is_saved_by_the_layers(tmp_path):
    """A ViT-S of 12 layers in one group: its encoder holds one block."""
    sizes = []
    for groups in (None, 1):
        encoder = EncoderConfig(dim=384, depth=12, heads=6, shared_groups=groups)
        model = ViT(ViTConfig(classes=0, encoder=encoder))
        model.save_pretrained(tmp_path / str(groups))
        blocks = sum(p.numel() for p in model.encoder.blocks.parameters())
        rest = sum(p.numel() for p in model.parameters()) - blocks
        file = tmp_path / str(groups) / "model.safetensors"
        assert file.stat().st_size == pytest.approx(4 * (blocks + rest), rel=1e-3)
        sizes.append(blocks)
    assert sizes[0] == 12 * sizes[1]


def test_sharing_and_unsharing():
    model, inputs = make("audio")
    size = sum(p.numel() for p in model.encoder.blocks.parameters())
    shared = share(model, 2)
    assert len(shared.encoder.blocks) == 2 and shared.config.encoder.shared_groups == 2
    assert sum(p.numel() for p in shared.encoder.blocks.parameters()) == size / 2
    before = shared(*inputs)
    whole = unshare(shared)
    assert len({id(block) for block in whole.encoder.blocks}) == 4 and whole.config.encoder.shared_groups is None
    assert torch.equal(whole(*inputs), before)
    with pytest.raises(UserError, match="4 layers cannot be shared out to 3 groups"):
        share(whole, 3)
