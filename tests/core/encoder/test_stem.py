"""The convolutional stem before the projection of patches."""

import pytest
import torch
from torch import nn

from core import PatchEmbedding, UserError
from core.encoder.stem import ConvolutionalStem
from core.objectives import MaskedAutoencoder, MaskedConfig
from vision.model import ViT, ViTConfig


def embedding(**options):
    torch.manual_seed(0)
    return PatchEmbedding(16, image_size=16, patch_size=8, channels=3, **{"stem": (6, 6, 10), **options}).eval()


def test_a_stem_is_convolutions_norms_and_gelu_before_the_projection():
    """By torch's own layers; each width that grows halves the image, and the projection does the rest."""
    made, images = embedding(positions="none", class_token=False), torch.randn(2, 3, 16, 24)
    x = images
    for layer, step in zip(made.stem.layers, (2, 1, 2), strict=True):
        x = nn.functional.conv2d(x, layer[0].weight, stride=step, padding=1)
        mean, var = x.mean(1, keepdim=True), x.var(1, unbiased=False, keepdim=True)
        x = nn.functional.gelu((x - mean) / (var + 1e-5).sqrt())
    assert made.projection.kernel_size == (2, 2) and x.shape[2:] == (4, 6)
    tokens = made(images)
    torch.testing.assert_close(tokens.x, made.projection(x).flatten(2).mT, rtol=1e-4, atol=1e-5)
    assert tokens.grid == (2, 3)


def test_images_of_a_list_are_embedded_as_alone():
    made, images = embedding(), [torch.randn(3, rows, columns) for rows, columns in ((16, 24), (8, 8), (16, 16))]
    row = made(images)
    parts = row.x[0].split([1 + 6, 1 + 1, 1 + 4])
    for part, image in zip(parts, images, strict=True):
        torch.testing.assert_close(part, made(image[None]).x[0], rtol=1e-4, atol=1e-5)


def test_an_image_does_not_depend_on_its_batch():
    made, images = embedding().train(), torch.randn(4, 3, 16, 16)
    torch.testing.assert_close(made(images).x[1:2], made(images[1:2]).x, rtol=1e-4, atol=1e-5)


def test_a_stem_with_batch_norm_learns_the_statistics_of_batches():
    made, images = embedding(stem_norm="batch"), 3 + 2 * torch.randn(8, 3, 16, 16)
    first = made.stem.layers[0]
    found = first[0](images).double()
    made.train()(images)
    mean, variance = found.mean((0, 2, 3)), found.var((0, 2, 3))
    torch.testing.assert_close(first[1].running_mean.double(), 0.1 * mean, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(first[1].running_var.double(), 0.9 + 0.1 * variance, rtol=1e-4, atol=1e-5)
    with pytest.raises(UserError, match="cannot learn from images of different sizes"):
        made([images[0], images[1]])
    whole = made.eval()(images[:2]).x
    torch.testing.assert_close(made([*images[:2]]).x[0], whole.flatten(0, 1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "options, words",
    [
        ({"stem": (4, 8, 16, 32)}, "halves images 4 times, but the patch size 8x8 is no multiple of 16"),
        ({"stride": 4}, "patches that do not overlap"),
    ],
)
def test_stems_that_do_not_fit_say_so(options, words):
    with pytest.raises(UserError, match=words):
        embedding(**options)


def test_a_model_with_a_stem_is_saved_with_it_and_not_masked(tmp_path):
    config = ViTConfig(
        image_size=16, patch_size=8, classes=3, stem=(6, 10), encoder={"dim": 16, "depth": 1, "heads": 2}
    )
    model = ViT(config).eval()
    model.save_pretrained(tmp_path)
    again, images = ViT.from_pretrained(tmp_path).eval(), torch.randn(2, 3, 16, 16)
    assert isinstance(again.embed.stem, ConvolutionalStem)
    torch.testing.assert_close(again(images), model(images), rtol=0, atol=0)
    with pytest.raises(UserError, match="stem of this ViT shows each token the pixels around its patch"):
        MaskedAutoencoder(model, MaskedConfig(ratio=0.5), 192)
