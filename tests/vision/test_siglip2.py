"""SigLIP 2 NaFlex of transformers: equal outputs for images of several sizes in one padded batch."""

import json
from dataclasses import replace

import pytest
import torch

from examples.multimodal import two_towers_hf
from tests.helpers.image_text_peers import PEERS
from tests.helpers.vision_peers import NATIVE, hf_peer
from text import from_hf as text_from_hf
from vision import from_hf

SIZES = [(32, 32), (16, 48), (8, 64), (24, 8), (8, 8), (40, 24)]
"""The grid of the positions, wide, in one row, high, one patch, and one larger than the positions' grid."""


def batch(images):
    """As transformers' image processor makes it: patches by row, column and channel, padded, with their grids."""
    patches = [image.unfold(1, 8, 8).unfold(2, 8, 8).permute(1, 2, 3, 4, 0).reshape(-1, 192) for image in images]
    longest = max(map(len, patches)) + 2
    mask = torch.stack([torch.arange(longest) < len(each) for each in patches])
    padded = torch.full((len(images), longest, 192), 3.0)
    for row, each in zip(padded, patches, strict=True):
        row[: len(each)] = each
    grids = torch.tensor([[image.shape[1] // 8, image.shape[2] // 8] for image in images])
    return {"pixel_values": padded, "pixel_attention_mask": mask.long(), "spatial_shapes": grids}


def outputs(module, images):
    given = batch(images)
    if hasattr(module, "get_image_features"):
        return module.get_image_features(**given).pooler_output
    found = module(**given)
    if getattr(found, "logits", None) is not None:
        return found.logits
    if found.pooler_output is not None:
        return found.pooler_output
    real = given["pixel_attention_mask"][..., None]
    return (found.last_hidden_state * real).sum(dim=1) / real.sum(dim=1)


def assert_close(found, expected):
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("case", NATIVE)
@torch.no_grad()
def test_outputs_are_equal(case):
    module, images = hf_peer(case), [torch.randn(3, *size) for size in SIZES]
    ours, expected = from_hf(module), outputs(module, images)
    assert_close(ours(images), expected)
    for image, own in zip(images, expected, strict=True):
        assert_close(ours(image[None])[0], own)
    assert ours.config.max_tokens == 16


@torch.no_grad()
def test_both_towers_are_equal():
    peer, images = PEERS["SigLIP 2 NaFlex"](), [torch.randn(3, *size) for size in SIZES[:3]]
    texts = torch.randint(3, 60, (2, 16))
    ours, expected = two_towers_hf.from_hf(peer), peer(input_ids=texts, **batch(images))
    assert_close(ours.logits(ours.of_images(images), ours.of_texts(texts)), expected.logits_per_image)
    assert_close(text_from_hf(peer.text_model)(texts), peer.text_model(texts).pooler_output)


@pytest.mark.parametrize("case", NATIVE)
@torch.no_grad()
def test_a_directory_is_read_like_the_module(case, tmp_path):
    module = hf_peer(case)
    module.save_pretrained(tmp_path)
    processor = {"image_processor_type": "Siglip2ImageProcessor", "patch_size": 8, "max_num_patches": 16}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))
    ours, own = from_hf(tmp_path), from_hf(module)
    assert replace(ours.config, preprocess=own.config.preprocess) == own.config
    assert ours.config.preprocess.interpolation == "bilinear"
    assert all(torch.equal(tensor, own.state_dict()[key]) for key, tensor in ours.state_dict().items())
