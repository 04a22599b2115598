"""Families of timm on our ViT: equal outputs, on small models with random weights."""

from dataclasses import replace

import pytest
import timm
import torch
from timm.models.beit import Beit

from tests.helpers.vision_peers import TIMM, timm_arguments, timm_peer
from vision import from_timm


def assert_close(found, expected):
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("family", TIMM)
@torch.no_grad()
def test_outputs_are_equal(family):
    """At its own image size and at others, in batches and in a list."""
    own = timm_peer(family)
    if isinstance(own, Beit):  # takes images of one size at a time
        for size in ((64, 64), (64, 96), (32, 32)):
            images, ours = torch.randn(2, 3, *size), from_timm(own, image_size=size)
            peer = timm_peer(family)
            peer.set_input_size(img_size=size)
            assert_close(ours(images), peer(images))
        return
    peer = timm_peer(family, dynamic_img_size=True)
    side, patch = own.patch_embed.img_size[0], own.patch_embed.patch_size[0]
    images = [torch.randn(3, *size) for size in ((side, side), (patch, 3 * patch), (5 * patch, 2 * patch))]
    ours = from_timm(own)
    assert_close(ours(images[0][None]), own(images[0][None]))
    expected = [peer(image[None])[0] for image in images]
    for image, outputs in zip(images, expected, strict=True):
        assert_close(ours(image[None])[0], outputs)
    assert_close(ours(images), torch.stack(expected))
    resized = from_timm(own, image_size=(2 * patch, 6 * patch))
    images = torch.randn(2, 3, 2 * patch, 6 * patch)
    assert_close(resized(images), timm_peer(family, dynamic_img_size=True)(images))


@pytest.mark.parametrize("family", TIMM)
def test_a_directory_is_read_like_the_module(family, tmp_path):
    peer = timm_peer(family)
    timm.models.save_for_hf(peer, tmp_path, model_args=timm_arguments(family))
    ours, own = from_timm(tmp_path), from_timm(peer)
    assert replace(ours.config, preprocess=own.config.preprocess) == own.config
    assert all(torch.equal(tensor, own.state_dict()[key]) for key, tensor in ours.state_dict().items())


def test_frequencies_learn_alike():
    """In fp32, as timm computes angles."""
    peer, images = timm_peer("RoPE-ViT, mixed"), torch.randn(2, 3, 64, 64)
    ours = from_timm(peer)
    for model in (peer, ours):
        model(images).square().sum().backward()
    for expected, block in zip(peer.rope.freqs.grad.unbind(1), ours.encoder.blocks, strict=True):
        assert (block.rotary.weight.grad - expected.flip(0)).abs().max() <= 1e-4 * expected.abs().max()


@pytest.mark.parametrize("family", TIMM)
@torch.no_grad()
def test_intermediate_layers_are_equal(family):
    peer = timm_peer(family)
    images = torch.randn(2, 3, *peer.patch_embed.img_size)
    expected = peer.forward_intermediates(images, indices=[0, 1], norm=False, intermediates_only=True)
    for mine, theirs in zip(from_timm(peer).intermediate(images, (0, 1)), expected, strict=True):
        assert_close(mine.maps, theirs)
