"""A list of images of different sizes: each gets what it gets alone."""

import re
from dataclasses import replace

import pytest
import torch

from core import EncoderConfig, PositionResize, UserError, adapters
from core.attention.maps import attention_map
from core.sparse import Axial, Global, Local, Window2d
from vision import ViT, ViTConfig

TINY = ViTConfig(image_size=(12, 16), patch_size=4, classes=5, encoder=EncoderConfig(dim=32, depth=2, heads=2))
SIZES = [(12, 16), (4, 4), (20, 8), (12, 16), (8, 24), (16, 4)]


def with_encoder(**options) -> ViTConfig:
    return replace(TINY, encoder=replace(TINY.encoder, **options))


VARIANTS = {
    "class token": TINY,
    "registers": replace(TINY, registers=3),
    "no prefix": replace(TINY, class_token=False, pool="mean"),
    "no prefix positions": replace(TINY, registers=1, prefix_positions=False, pool="max"),
    "pooled prefix": replace(TINY, registers=1, pool="prefix", head_norm=True),
    "sincos": replace(TINY, positions="sincos"),
    "no positions": replace(TINY, positions="none"),
    "rotary": replace(with_encoder(rotary="2d"), positions="none", registers=2),
    "rotary in units": with_encoder(rotary="2d", rotary_unit=True, rotary_theta=100.0),
    "rotary on a line": replace(with_encoder(rotary="1d"), positions="none"),
    "overlap": replace(TINY, patch_size=(4, 8), stride=4),
    "gaps": replace(TINY, patch_size=3, stride=4, image_size=(11, 15)),
    "attention pool": replace(TINY, pool="attention", class_token=False),
    "attention pool without prefix": replace(TINY, pool="attention", registers=1, pool_prefix=False),
    "positions of another grid": replace(
        TINY, position_grid=(5, 3), position_resize=PositionResize(mode="bilinear", antialias=False, keep_aspect=True)
    ),
    "factorised": replace(TINY, positions="factorised", position_grid=(2, 6)),
    "local": with_encoder(patterns=(Local(2, exact=True), None)),
    "windows": with_encoder(patterns=(Window2d(1, exact=True), Axial() | Global())),
    "patch norm": replace(TINY, patch_norm=True, encoder=replace(TINY.encoder, norm="rmsnorm")),
    "attention pool of its own shape": replace(TINY, pool="attention", pool_heads=4, pool_mlp_dim=12),
    "class token and mean": replace(TINY, registers=2, pool="cls_mean"),
    "each prefix token": replace(TINY, registers=2, pool="each_prefix", head_norm=True),
    "rotary of a reference grid": with_encoder(rotary="2d", rotary_reference=(4, 5)),
    "learned rotary": with_encoder(rotary="2d", rotary_learned=True, rotary_offset=2.0),
    "relative biases": with_encoder(relative_bias=(3, 5)),
    "shared relative biases": with_encoder(relative_bias=(3, 5), relative_bias_shared=True),
    "no bias": replace(TINY, patch_bias=False, channels=1),
}


def make(name: str) -> tuple[ViT, list[torch.Tensor]]:
    config = VARIANTS[name]
    model = ViT(config).double()
    with torch.no_grad():  # so that nothing is small by its initial value
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    cuts = zip(model.embed.patch_size, model.embed.stride, strict=True)
    sides = [
        [patch + (side // 4 - 1) * step for side in axis]
        for axis, (patch, step) in zip(zip(*SIZES, strict=True), cuts, strict=True)
    ]
    sizes = zip(*sides, strict=True)
    return model, [torch.randn(config.channels, *size, dtype=torch.double) for size in sizes]


def outputs_and_gradients(model: ViT, run, images):
    images = [image.clone().requires_grad_() for image in images]
    model.zero_grad()
    out = run(images)
    (out * torch.linspace(-1, 2, out.numel(), dtype=out.dtype).view_as(out)).sum().backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return out.detach(), gradients, [image.grad for image in images]


def assert_alone_equals_together(model: ViT, images) -> None:
    together = outputs_and_gradients(model, model, images)
    alone = outputs_and_gradients(model, lambda images: torch.cat([model(image[None]) for image in images]), images)
    assert together[1].keys() == alone[1].keys()
    torch.testing.assert_close(together, alone, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", VARIANTS)
def test_each_image_gets_what_it_gets_alone(name):
    model, images = make(name)
    assert_alone_equals_together(model, images)


@pytest.mark.parametrize("spec", [adapters.LoRA(rank=2), adapters.Bottleneck(), adapters.Prompt(tokens=3)])
def test_adapters_do_the_same_in_a_row(spec):
    model, images = make("registers")
    adapters.add(model, spec)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    assert_alone_equals_together(model.double(), images)


@pytest.mark.parametrize(
    "name",
    ["class token", "no prefix positions", "pooled prefix", "attention pool", "attention pool without prefix", "local"],
)
def test_each_image_has_its_own_attention_map(name):
    model, images = make(name)
    maps = attention_map(model, images)
    assert [each.shape for each in maps] == [(image.shape[1] // 4, image.shape[2] // 4) for image in images]
    torch.testing.assert_close(maps, [attention_map(model, image[None])[0] for image in images])


def test_patches_and_single_images():
    model, images = make("overlap")
    torch.testing.assert_close(model.patches(images), torch.cat([model.patches(i[None]) for i in images], dim=1))
    torch.testing.assert_close(model(tuple(images[:1])), model(images[0][None]))
    assert model.patches(images[:2]).shape == (1, 3 * 4 + 1, 3 * 4 * 8)


def test_half_precision_stays_near_full():
    model, images = make("registers")
    model, images = model.float(), [image.float() for image in images]
    with torch.autocast("cpu", torch.bfloat16):
        half, alone = model(images), torch.cat([model(image[None]) for image in images])
    full = model(images)
    assert (half - full).norm() < 0.03 * full.norm() and (half - alone).norm() < 0.03 * full.norm()


def image(rows, columns, channels=3):
    return torch.zeros(channels, rows, columns)


@pytest.mark.parametrize(
    "images, words",
    [
        ([], "The list of images is empty: give at least one"),
        ([image(4, 4), image(4, 7)], "Image 1 of the list: .*7 pixels wide cannot be cut .* choose 4 or 8 pixels"),
        ([image(4, 4), image(4, 4), image(3, 8)], "Image 2 of the list: .*3 pixels high .* choose 4 pixels"),
        ([image(0, 4)], "Image 0 of the list: .*at least 1"),
        ([image(4, 4), image(4, 4, channels=1)], "Image 1 of the list has 1 channels, but the model takes 3"),
    ],
)
def test_images_that_fit_no_patches_are_named(images, words):
    for call in (ViT(TINY), ViT(TINY).patches):
        with pytest.raises(UserError, match=words):
            call(images)


@pytest.mark.parametrize("shape", [(4, 4), (1, 3, 4, 4)])
def test_a_list_of_other_things_than_images_is_refused(shape, as_in_production):
    words = "Image 1 of the list must have channels, rows and columns, but its shape is "
    with pytest.raises(UserError, match=re.escape(f"{words}{shape}")):
        ViT(TINY)([image(4, 4), torch.zeros(shape)])
