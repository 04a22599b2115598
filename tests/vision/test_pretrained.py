"""Equal outputs with timm, on random weights."""

import shutil
import warnings

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models import load_checkpoint

from vision import ViT, from_timm

NAMES = [
    "vit_tiny_patch16_224",
    "vit_small_patch16_224",
    "vit_base_patch16_224",
    "vit_base_patch32_224",
    "deit3_small_patch16_224",
    "vit_small_patch14_reg4_dinov2",
    "vit_base_patch16_clip_quickgelu_224",
    "vit_base_patch16_siglip_224",
    "vit_wee_patch16_reg1_gap_256",
    "vit_small_patch16_dinov3",
    "vit_small_patch16_dinov3_qkvb",
]


def timm_model(name, **changes):
    torch.manual_seed(0)
    if not name.startswith(("vit_tiny", "vit_small_patch16_224")):
        changes = {"depth": 3, **changes}  # the same code, a quarter of the time
    model = timm.create_model(name, **changes).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # zeros and tiny gains would hide mistakes
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model


def assert_equal_logits(ours, peer, size, channels=3):
    images = torch.randn(2, channels, *size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected, found = peer(images), ours(images)
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("name", NAMES)
def test_logits_equal_timms(name):
    peer = timm_model(name)
    assert_equal_logits(from_timm(peer), peer, peer.pretrained_cfg["input_size"][1:])


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "vit_small_patch14_reg4_dinov2", "vit_small_patch16_dinov3"])
@pytest.mark.parametrize("size", [(112, 112), (140, 224)])
def test_other_image_sizes_on_the_fly(name, size):
    """timm's own resizing at call time (dynamic_img_size)."""
    patch = 14 if "14" in name else 16
    size = tuple(side // 28 * 2 * patch for side in size)
    peer = timm_model(name, dynamic_img_size=True)
    assert_equal_logits(from_timm(peer), peer, size)


@pytest.mark.parametrize(
    "name, changes",
    [
        ("vit_tiny_patch16_224", {"img_size": 160}),
        ("vit_tiny_patch16_224", {"img_size": (96, 192)}),
        ("vit_tiny_patch16_224", {"patch_size": 32}),
        ("vit_tiny_patch16_224", {"patch_size": 8, "img_size": 64}),
        ("vit_tiny_patch16_224", {"in_chans": 1}),
        ("vit_tiny_patch16_224", {"in_chans": 5, "patch_size": 12, "img_size": 96}),
        ("deit3_small_patch16_224", {"img_size": 128}),
        ("vit_wee_patch16_reg1_gap_256", {"img_size": 128, "in_chans": 4}),
        ("vit_small_patch16_dinov3", {"img_size": 96, "patch_size": 8, "in_chans": 1}),
    ],
)
def test_resized_loading_equals_timms(name, changes, tmp_path):
    """timm loads its own checkpoint into the changed model; so do we."""
    stock = timm_model(name)
    save_file(stock.state_dict(), tmp_path / "model.safetensors")
    peer = timm_model(name, **changes)
    state = stock.state_dict()
    if channels := changes.get("in_chans"):
        from timm.models import adapt_input_conv

        state["patch_embed.proj.weight"] = adapt_input_conv(channels, state["patch_embed.proj.weight"]).contiguous()
        save_file(state, tmp_path / "model.safetensors")
    from timm.models.eva import checkpoint_filter_fn as eva_filter
    from timm.models.vision_transformer import checkpoint_filter_fn as vit_filter

    load_checkpoint(
        peer, tmp_path / "model.safetensors", filter_fn=eva_filter if "dinov3" in name else vit_filter, strict=True
    )
    ours = from_timm(
        stock,
        image_size=changes.get("img_size"),
        patch_size=changes.get("patch_size"),
        channels=changes.get("in_chans"),
    )
    size = changes.get("img_size", 224 if "224" in name else 256)
    size = (size, size) if isinstance(size, int) else size
    assert_equal_logits(ours, peer, size, changes.get("in_chans", 3))


def test_a_new_number_of_classes_starts_the_head_afresh_and_says_so():
    peer = timm_model("vit_tiny_patch16_224")
    with pytest.warns(UserWarning, match="head has 1000 classes, not 7: the head starts afresh"):
        ours = from_timm(peer, classes=7)
    same = from_timm(peer)
    images = torch.randn(1, 3, 224, 224)
    assert ours(images).shape == (1, 7)
    torch.testing.assert_close(ours.features(images), same.features(images))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        features = from_timm(timm_model("vit_tiny_patch16_224", num_classes=0))
    torch.testing.assert_close(features(images), features.features(images))


def test_a_local_directory_in_timms_format(tmp_path):
    peer = timm_model("vit_tiny_patch16_224")
    timm.models.save_for_hf(peer, tmp_path)
    assert_equal_logits(from_timm(tmp_path), peer, (224, 224))


def test_save_and_load(tmp_path):
    ours = from_timm(timm_model("vit_wee_patch16_reg1_gap_256"))
    ours.save_pretrained(tmp_path / "model")
    again = ViT.from_pretrained(tmp_path / "model").eval()
    assert again.config == ours.config
    images = torch.randn(1, 3, 256, 256)
    torch.testing.assert_close(again(images), ours(images), rtol=0, atol=0)
    shutil.rmtree(tmp_path / "model")


@pytest.mark.parametrize(
    "name, words",
    [
        ("resnet18", "VisionTransformer and Eva families, not ResNet"),
        ("vit_pwee_patch16_reg1_gap_256", "blocks of type ParallelScalingBlock"),
        ("eva02_tiny_patch14_224", "rotary positions of type|a norm inside"),
    ],
)
def test_what_has_no_equal_here_is_named(name, words):
    with pytest.raises(ValueError, match=words):
        from_timm(timm.create_model(name))


def test_what_has_no_equal_here_is_not_downloaded_first(monkeypatch):
    monkeypatch.setattr("timm.models._builder.load_pretrained", lambda *_, **__: pytest.fail("it loads the weights"))
    with pytest.raises(ValueError, match="not ResNet"):
        from_timm("resnet18")
