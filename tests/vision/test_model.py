from dataclasses import replace

import pytest
import torch

from core import EncoderConfig, UserError, from_dict, patch_grid, to_dict
from vision import ViT, ViTConfig

TINY = ViTConfig(image_size=32, patch_size=8, classes=5, encoder=EncoderConfig(dim=32, depth=2, heads=2))
VARIANTS = {
    "stock": TINY,
    "not square": replace(TINY, image_size=(24, 40), patch_size=(8, 4)),
    "overlap": replace(TINY, patch_size=8, stride=4, channels=1),
    "registers, mean": replace(TINY, registers=3, class_token=False, pool="mean", head_norm=True),
    "max, no prefix positions": replace(TINY, pool="max", prefix_positions=False),
    "sincos": replace(TINY, positions="sincos"),
    "attention pool": replace(TINY, pool="attention", class_token=False),
    "rotary": replace(TINY, positions="none", encoder=replace(TINY.encoder, rotary="2d")),
    "features": replace(TINY, classes=0),
    "class token and mean": replace(TINY, pool="cls_mean"),
    "each prefix token": replace(TINY, registers=1, pool="each_prefix"),
    "relative biases": replace(TINY, encoder=replace(TINY.encoder, relative_bias=(4, 4))),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_variants_run_at_any_size_and_learn_everywhere(name, tmp_path):
    config = VARIANTS[name]
    torch.manual_seed(0)
    model = ViT(config)
    side = (48, 56) if name != "overlap" else (20, 28)
    images = torch.randn(2, config.channels, *side)
    out = model(images)
    assert out.shape == (2, config.classes or 32)
    out.square().sum().backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, key
    assert from_dict(ViTConfig, to_dict(config)) == config
    model.save_pretrained(tmp_path)
    again = ViT.from_pretrained(tmp_path)
    torch.testing.assert_close(again(images), out, rtol=0, atol=0)


@pytest.mark.parametrize("image, patch, stride, grid", [(224, 16, None, (14, 14)), ((8, 12), (3, 4), 1, (6, 9))])
def test_grid(image, patch, stride, grid):
    assert patch_grid(image, patch, stride) == grid


@pytest.mark.parametrize(
    "image, patch, stride, words",
    [
        (225, 16, None, "225 pixels high cannot be cut into patches of 16 at a stride of 16: choose 224 or 240 pixels"),
        ((32, 33), 8, 4, "33 pixels wide .* choose 32 or 36 pixels"),
        (8, 16, None, "choose 16 pixels"),
        (8, 0, None, "must be at least 1"),
    ],
)
def test_a_size_that_does_not_divide_names_the_choices(image, patch, stride, words):
    with pytest.raises(UserError, match=words):
        patch_grid(image, patch, stride)


def test_the_class_token_is_needed_where_it_is_pooled():
    with pytest.raises(UserError, match="needs class_token=True"):
        ViT(replace(TINY, class_token=False))


@pytest.mark.parametrize(
    "content", [b"", b"PK\x03\x04" * 99, bytes(99), b"version https://git-lfs.github.com/spec/v1\n"]
)
def test_damaged_weights_get_one_sentence(tmp_path, content):
    ViT(ViTConfig(image_size=8, patch_size=4, encoder=EncoderConfig(dim=8, depth=1, heads=1))).save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(UserError, match=r"model\.safetensors (cannot be read|is a pointer of Git LFS)") as error:
        ViT.from_run(tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["stock", "attention pool", "features"])
def test_flip_average_is_the_mean_over_an_image_and_its_mirror_image_in_evaluation(name):
    torch.manual_seed(0)
    plain = ViT(VARIANTS[name]).eval()
    both = ViT(replace(VARIANTS[name], flip_average=True))
    both.load_state_dict(plain.state_dict())
    images = torch.randn(3, 3, 32, 32)
    torch.testing.assert_close(both(images), plain(images), rtol=0, atol=0)  # in training
    both.eval()
    expected = (plain(images) + plain(images.flip(-1))) / 2
    assert (expected - plain(images)).abs().max() > 1e-3
    torch.testing.assert_close(both(images), expected)
    torch.testing.assert_close(both(images.flip(-1)), expected)
    torch.testing.assert_close(both([images[0], images[1, :, :16]])[:1], expected[:1], rtol=1e-5, atol=1e-5)
