"""Equal outputs with timm, on random weights."""

import json
import shutil
import warnings

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from timm.models import load_checkpoint
from transformers import ViTConfig, ViTForImageClassification

from core import UserError, WeightsError
from vision import ViT, from_timm
from vision.pretrained import load_pretrained

NAMES = [
    "vit_tiny_patch16_224",
    "vit_small_patch16_224",
    "vit_base_patch16_224",
    "vit_base_patch32_224",
    "deit3_small_patch16_224",
    "deit_tiny_distilled_patch16_224",
    "eva02_tiny_patch14_224",
    "eva02_base_patch16_clip_224",
    "beit3_base_patch16_224",
    "beit_base_patch16_224",
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
@pytest.mark.parametrize("norm", [False, True])
def test_intermediate_layers_equal_timms(name, norm):
    peer = timm_model(name)
    images = torch.randn(2, 3, *peer.pretrained_cfg["input_size"][1:])
    with torch.no_grad():
        expected = peer.forward_intermediates(
            images, indices=[0, -1 % len(peer.blocks)], norm=norm, intermediates_only=True
        )
        found = from_timm(peer).intermediate(images, (0, -1), norm=norm)
    for mine, theirs in zip(found, expected, strict=True):
        assert (mine.maps - theirs).abs().max() <= 1e-5 * theirs.abs().max()


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
        ("eva02_tiny_patch14_224", {"img_size": (140, 168)}),
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
    with pytest.warns(
        UserWarning, match="checkpoint's head is for 1000 classes, not 7 classes: the head is initialised at random"
    ):
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
        ("resnet18", "VisionTransformer, Eva, Beit and NaFlexVit families, not ResNet"),
        ("vit_small_patch16_18x2_224", "blocks of type ParallelThingsBlock"),
        ("vit_dwee_patch16_reg1_gap_256", "attention of type DiffAttention"),
    ],
)
def test_what_has_no_equal_here_is_named(name, words):
    with pytest.raises(ValueError, match=words):
        from_timm(timm.create_model(name))


def test_what_has_no_equal_here_is_not_downloaded_first(monkeypatch):
    monkeypatch.setattr("timm.models._builder.load_pretrained", lambda *_, **__: pytest.fail("it loads the weights"))
    with pytest.raises(ValueError, match="not ResNet"):
        from_timm("resnet18")


SMALL = {"depth": 1, "embed_dim": 32, "num_heads": 2, "img_size": 32, "num_classes": 5}


@pytest.fixture
def folder(tmp_path):
    """A small model in timm's format, its weights not yet written; and the model."""
    peer = timm.create_model("vit_tiny_patch16_224", **SMALL).eval()
    timm.models.save_for_hf(peer, tmp_path)
    (tmp_path / "pytorch_model.bin").unlink()
    return tmp_path, peer


def write(folder, state, name="pytorch_model.bin"):
    save_file(state, folder / name) if name.endswith("safetensors") else torch.save(state, folder / name)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize(
    "prefix", ["", "module.", "model.", "_orig_mod.", "backbone.", "module._orig_mod.", "timm_model."]
)
def test_a_directory_of_a_wrapped_model(name, prefix, folder):
    path, peer = folder
    write(path, {f"{prefix}{key}": tensor for key, tensor in peer.state_dict().items()}, name)
    assert_equal_logits(from_timm(path), peer, (32, 32))
    assert_equal_logits(load_pretrained(str(path)), peer, (32, 32))


@pytest.mark.parametrize("nest", ["state_dict", "model"])
def test_a_directory_of_a_training_checkpoint(nest, folder):
    path, peer = folder
    write(path, {nest: {f"module.{key}": tensor for key, tensor in peer.state_dict().items()}, "epoch": 3})
    assert_equal_logits(from_timm(path), peer, (32, 32))


@pytest.mark.parametrize(
    "key", ["head.weight", "blocks.0.attn.qkv.bias", "cls_token", "pos_embed", "patch_embed.proj.weight"]
)
def test_a_missing_weight_is_named(key, folder):
    path, peer = folder
    write(path, {name: tensor for name, tensor in peer.state_dict().items() if name != key})
    with pytest.raises(WeightsError, match=rf"not in the checkpoint: {key}\.$"):
        from_timm(path)
    with pytest.raises(UserError, match=f"not in the checkpoint: {key}"):
        load_pretrained(str(path))


@pytest.mark.parametrize("key", ["pooler.weight", "blocks.1.norm1.weight", "attn_pool.latent", "head_dist.weight"])
def test_a_weight_that_is_left_over_is_named(key, folder):
    path, peer = folder
    write(path, {**peer.state_dict(), key: torch.zeros(1)})
    with pytest.raises(UserError, match=key):
        from_timm(path)


def test_a_siglip_tower_without_its_pool(tmp_path):
    """timm's checkpoint holds a pool by attention that this model does not have; anything else is still an error."""
    peer = timm.create_model("vit_base_patch16_siglip_gap_224", **SMALL).eval()
    timm.models.save_for_hf(peer, tmp_path)
    state = {**peer.state_dict(), "attn_pool.latent": torch.zeros(1)}
    write(tmp_path, state)
    assert_equal_logits(from_timm(tmp_path), peer, (32, 32))
    del state["norm.weight"]
    write(tmp_path, {**state, "text.weight": torch.zeros(1)})
    with pytest.raises(WeightsError, match=r"not in the checkpoint: norm.weight; not in the model: text.weight\.$"):
        from_timm(tmp_path)


def test_a_weight_of_another_shape_is_named(folder):
    path, peer = folder
    write(path, {**peer.state_dict(), "head.weight": torch.zeros(7, 32)})
    with pytest.raises(UserError, match=r"head\.weight"):
        from_timm(path)


def test_fewer_classes_than_the_config_says(folder):
    """timm drops the checkpoint's head, and lets the model's stay random."""
    path, peer = folder
    settings = json.loads((path / "config.json").read_text())
    write(path, peer.state_dict())
    (path / "config.json").write_text(json.dumps({**settings, "num_classes": 3}))
    with pytest.raises(WeightsError, match=r"not in the checkpoint: head\.weight; not in the checkpoint: head\.bias"):
        from_timm(path)


def transformers_model():
    config = ViTConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, image_size=32)
    return ViTForImageClassification(config)


@pytest.mark.parametrize(
    "prepare, words",
    [
        (lambda path: transformers_model().save_pretrained(path), "transformers' ViTForImageClassification"),
        (lambda path: torch.save({}, path / "pytorch_model.bin"), "config.json names no architecture"),
        (
            lambda path: (path / "config.json").write_text('{"architecture": "vit_tiny_patch16_224"}'),
            "holds no weights",
        ),
        (lambda path: (path / "config.json").write_text("[]"), "is not as it was written"),
        (lambda path: (path / "config.json").write_text('{"architecture": "vit_titanic"}'), "Unknown model"),
        (lambda path: (path / "config.json").write_text('{"architecture": "resnet18"}'), "not ResNet"),
    ],
)
def test_a_directory_that_is_no_timm_model_says_why(prepare, words, tmp_path):
    prepare(tmp_path)
    with pytest.raises(ValueError, match=words) as error:
        from_timm(tmp_path)
    assert "\n" not in str(error.value) and "network" not in str(error.value)


@pytest.mark.parametrize(
    "name, error, words",
    [
        ("vit_dwee_patch16_reg1_gap_256", UserError, "attention of type DiffAttention"),
        ("vit_so400m_patch14_siglip_384", UserError, "choose 378 or 392 pixels"),
    ],
)
def test_what_cannot_be_served_is_refused_before_it_is_downloaded(name, error, words, monkeypatch):
    monkeypatch.setattr("timm.models._builder.load_pretrained", lambda *_, **__: pytest.fail("it loads the weights"))
    with pytest.raises(error, match=words):
        from_timm(name)


def test_a_size_with_a_rest_can_be_cut_to_the_patches():
    """timm leaves out the pixels that fill no patch; here the image is made smaller instead."""
    peer = timm.create_model("vit_tiny_patch16_224", **{**SMALL, "img_size": 38}).eval()
    with pytest.raises(UserError, match="choose 32 or 48 pixels"):
        from_timm(peer)
    ours = from_timm(peer, image_size=32)
    images = torch.randn(2, 3, 38, 38)
    torch.testing.assert_close(ours(images[..., :32, :32]), peer(images), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("channels, wanted", [(1, 3), (4, 1), (4, 2)])
def test_only_colours_become_other_channels(channels, wanted):
    cfg = {"mean": (0.5,), "std": (0.5,)}
    peer = timm.create_model("vit_tiny_patch16_224", **SMALL, in_chans=channels, pretrained_cfg_overlay=cfg)
    with pytest.raises(ValueError, match=f"can be changed to {wanted}, but not one of {channels}"):
        from_timm(peer, channels=wanted)


def test_a_saved_model_is_checked_and_may_be_wrapped(tmp_path):
    """Our own format: whatever wrapped the model, and each key that is missing or left over by its name."""
    ours = from_timm(timm.create_model("vit_tiny_patch16_224", **SMALL))
    ours.save_pretrained(tmp_path)
    state, images = load_file(tmp_path / "model.safetensors"), torch.randn(1, 3, 32, 32)
    for prefix in ("module.", "_orig_mod.", "model."):
        save_file({f"{prefix}{key}": tensor for key, tensor in state.items()}, tmp_path / "model.safetensors")
        torch.testing.assert_close(ViT.from_run(tmp_path)(images), ours(images), rtol=0, atol=0)
    few = {key: tensor for key, tensor in state.items() if key != "head.bias"}
    save_file({**few, "tail.bias": torch.zeros(1)}, tmp_path / "model.safetensors")
    for read in (ViT.from_run, ViT.from_pretrained):
        with pytest.raises(UserError, match=r"model: tail\.bias; not in the checkpoint: head\.bias"):
            read(tmp_path)
