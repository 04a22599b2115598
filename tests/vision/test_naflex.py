"""timm's NaFlexVit: equal outputs for images of mixed sizes, on random weights; what has no equal here is refused."""

from dataclasses import replace

import pytest
import timm
import torch
from timm.data.naflex_dataset import NaFlexCollator
from timm.data.naflex_transforms import Patchify

from core import UserError, WeightsError
from tests.helpers.vision_peers import NAFLEX, NAFLEX_SMALL, naflex_peer
from vision import ViT, from_timm
from vision.pretrained import load_pretrained

SIZES = [(256, 256), (128, 128), (48, 336), (352, 96), (80, 16), (16, 16)]
"""The positions' own grid, a smaller one, wide, high, of one column, and of one patch."""


def images_of(peer, sizes=SIZES):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(peer.embeds.in_chans, *size, generator=generator) for size in sizes]


def timm_batch(peer, images):
    """One padded batch, by timm's own transform and collate function."""
    patchify = Patchify(peer.embeds.patch_size, channels_last=peer.embeds.channels_last)
    samples = [(patchify(image), 0) for image in images]
    longest = max(len(sample["patches"]) for sample, _ in samples)
    return NaFlexCollator(max_seq_len=longest + 3)(samples)[0]


def assert_close(found, expected):
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("kind", NAFLEX)
@torch.no_grad()
def test_mixed_sizes_give_the_outputs_of_timm(kind):
    name, changes = NAFLEX[kind]
    peer = naflex_peer(name, **changes)
    ours, images = from_timm(peer), images_of(peer)
    assert_close(ours(images), peer(timm_batch(peer, images)))
    for image in images:
        assert_close(ours(image[None]), peer(image[None]))


@torch.no_grad()
def test_positions_matter_in_these_tests():
    peer = naflex_peer("naflexvit_base_patch16_siglip")
    ours, images = from_timm(peer), images_of(peer)
    other = ViT(replace(ours.config, position_resize=replace(ours.config.position_resize, mode="bicubic")))
    other.load_state_dict(ours.state_dict())
    assert (other.eval()(images) - ours(images)).abs().max() > 1e-3


def gradients(peer, outputs, target):
    ((outputs - target) ** 2).sum().backward()
    return {key: parameter.grad for key, parameter in peer.named_parameters()}


@pytest.mark.parametrize("kind", ["siglip", "par_gap", "parfac_gap"])
def test_gradients_are_those_of_timm(kind):
    peer = naflex_peer(NAFLEX[kind][0]).double()
    ours, images = from_timm(peer).double(), [image.double() for image in images_of(peer, SIZES[1:4])]
    batch = timm_batch(peer, images)
    batch["patches"] = torch.zeros_like(batch["patches"], dtype=torch.float64)  # timm's own collate gives fp32
    for number, image in enumerate(images):
        patches = Patchify(16)(image)["patches"]
        batch["patches"][number, : len(patches)] = patches
    target = torch.randn(3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    expected, found = gradients(peer, peer(batch), target), gradients(ours, ours(images), target)
    for name, theirs in {
        "embed.positions.weight": "embeds.pos_embed",
        "embed.positions.rows": "embeds.pos_embed_y",
        "embed.positions.columns": "embeds.pos_embed_x",
        "embed.projection.bias": "embeds.proj.bias",
        "encoder.blocks.0.attention.qkv.weight": "blocks.0.attn.qkv.weight",
        "head.weight": "head.weight",
    }.items():
        assert (name in found) == (theirs in expected)
        if name in found:
            assert_close(found[name], expected[theirs].reshape(found[name].shape))
    kernel = expected["embeds.proj.weight"].reshape(32, 16, 16, 3).permute(0, 3, 1, 2)
    assert_close(found["embed.projection.weight"], kernel)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["siglip", "parfac_gap", "C-RADIOv4"])
def test_a_directory_in_timms_format(kind, tmp_path):
    name, changes = NAFLEX[kind]
    peer = naflex_peer(name, **changes)
    timm.models.save_for_hf(peer, tmp_path, model_args={**NAFLEX_SMALL, **changes})
    ours, images = load_pretrained(str(tmp_path)), images_of(peer)
    assert_close(ours(images), peer(timm_batch(peer, images)))
    side, prefix, longest = (512, 10, 1024) if "radio" in name else (384, peer.num_prefix_tokens, 576)
    form = ours.config.image_format
    assert (form.size, form.prefix, form.max_tokens) == (side, prefix, prefix + longest) and not ours.training
    ours.save_pretrained(tmp_path / "ours")
    again = load_pretrained(str(tmp_path / "ours"))
    assert again.config == ours.config
    torch.testing.assert_close(again(images), ours(images), rtol=0, atol=0)


@pytest.mark.parametrize("key", ["embeds.proj.weight", "embeds.reg_token", "attn_pool.latent", "head.weight"])
def test_a_missing_weight_is_named(key, tmp_path):
    peer = naflex_peer("naflexvit_base_patch16_map")
    timm.models.save_for_hf(peer, tmp_path, model_args=NAFLEX_SMALL)
    (tmp_path / "model.safetensors").unlink(missing_ok=True)
    state = peer.state_dict()
    del state[key]
    torch.save(state, tmp_path / "pytorch_model.bin")
    with pytest.raises(WeightsError, match=rf"not in the checkpoint: {key}\.$"):
        from_timm(tmp_path)


@torch.no_grad()
def test_another_image_size_does_not_change_the_positions():
    peer = naflex_peer("naflexvit_base_patch16_gap")
    ours, images = from_timm(peer, image_size=224), images_of(peer)
    assert ours.config.image_size == 224 and ours.config.position_grid == (16, 16)
    assert ours.config.max_tokens == 4 + 14 * 14
    assert_close(ours(images), peer(timm_batch(peer, images)))


def test_another_patch_size_keeps_the_grid_of_positions():
    ours = from_timm(naflex_peer("naflexvit_base_patch16_parfac_gap"), patch_size=8, channels=1)
    assert ours.embed.projection.weight.shape == (32, 1, 8, 8) and len(ours.embed.positions.rows) == 16
    assert ours([torch.randn(1, 24, 40), torch.randn(1, 8, 8)]).shape == (2, 5)


REFUSED = {
    "positions read by grid_sample": {"pos_embed_use_grid_sample": True},
    "positions interpolated by 'nearest'": {"pos_embed_interp_mode": "nearest"},
    "pooling 'avgmax'": {"global_pool": "avgmax"},
    "pooling over prefix tokens": {"pool_include_prefix": True},
    "rotary positions of type RotaryEmbeddingMRope": {"rope_type": "mrope", "rope_mrope_section": (2, 3, 3)},
    "gated attention": {"attn_gated": True},
    "attention of type DiffAttention": {"attn_layer": "diff"},
}


@pytest.mark.parametrize("words", REFUSED)
def test_what_has_no_equal_here_is_named(words):
    peer = timm.create_model("naflexvit_base_patch16_gap", **NAFLEX_SMALL, **REFUSED[words])
    with pytest.raises(UserError, match=f"^from_timm does not support {words}[^.]*\\.$"):
        from_timm(peer)


@torch.no_grad()
def test_pooling_by_attention_leaves_out_registers_as_in_timm():
    torch.manual_seed(0)
    peer = timm.create_model("vit_so150m_patch16_reg4_map_256", **NAFLEX_SMALL, img_size=64).eval()
    peer.reg_token.normal_()
    images = torch.randn(2, 3, 64, 64)
    assert_close(from_timm(peer)(images), peer(images))
