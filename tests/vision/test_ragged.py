"""A list of images of different sizes: each gets what it gets alone."""

from dataclasses import replace

import pytest
import torch

from core import EncoderConfig
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
    "local": with_encoder(patterns=(Local(2, exact=True), None)),
    "windows": with_encoder(patterns=(Window2d(1, exact=True), Axial() | Global())),
    "no bias": replace(TINY, patch_bias=False, channels=1),
}


def make(name: str) -> tuple[ViT, list[torch.Tensor]]:
    config = VARIANTS[name]
    model = ViT(config).double()
    with torch.no_grad():  # so that nothing is small by its initial value
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    (height, width), patch = model.embed.patch_size, model.embed.patch_size
    steps = model.embed.stride
    sizes = [tuple(patch[axis] + (side // 4 - 1) * steps[axis] for axis, side in enumerate(size)) for size in SIZES]
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
