"""transformers' ViTMAEForPreTraining on our masked autoencoder: equal predictions and loss for the same patches."""

import json

import pytest
import torch
import transformers
from transformers.models.vit_mae.modeling_vit_mae import build_2d_sinusoidal_position_embedding

from core import UserError
from core.objectives.masked_patches import MaskedPatches
from vision import masked_autoencoder_from_hf

SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "image_size": 32,
    "patch_size": 8,
    "decoder_hidden_size": 24,
    "decoder_num_hidden_layers": 2,
    "decoder_num_attention_heads": 2,
    "decoder_intermediate_size": 96,
}


def peer(**changes) -> transformers.ViTMAEForPreTraining:
    torch.manual_seed(0)
    module = transformers.ViTMAEForPreTraining(transformers.ViTMAEConfig(**{**SMALL, **changes})).eval()
    for name, parameter in module.named_parameters():
        if name != "decoder.decoder_pos_embed":  # fixed
            torch.nn.init.normal_(parameter, std=0.2)
    width = module.config.decoder_hidden_size
    positions = build_2d_sinusoidal_position_embedding(4, 4, width, cls_token=True)
    with torch.no_grad():  # as checkpoints have them; transformers 5 leaves those of a new model at 0
        module.decoder.decoder_pos_embed.copy_(positions.roll(width // 2, dims=1))
    return module


def assert_close(found, expected):
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("normalise", [False, True])
@torch.no_grad()
def test_predictions_and_loss_are_equal(normalise):
    module = peer(norm_pix_loss=normalise)
    ours = masked_autoencoder_from_hf(module)
    images, noise = torch.randn(3, 3, 32, 32), torch.rand(3, 4, 4)
    expected = module(images, noise=noise.flatten(1))
    found = ours(images, -noise)  # transformers keeps the patches of least noise, we mask them
    assert torch.equal(found.masked, expected.mask.bool())
    by_channel = expected.logits.unflatten(2, (8, 8, 3)).movedim(4, 2).flatten(2)
    assert_close(found.predicted, by_channel)
    assert_close(MaskedPatches().errors(found)[0].mean(), expected.loss)
    row = ours(list(images), -noise)
    assert_close(row.predicted[0], found.predicted.flatten(0, 1))


@torch.no_grad()
def test_a_directory_is_read_like_the_module(tmp_path):
    module = peer(mask_ratio=0.5)
    module.save_pretrained(tmp_path)
    processor = {"image_processor_type": "ViTImageProcessor", "size": {"height": 32, "width": 32}}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))
    images, noise = torch.randn(2, 3, 32, 32), torch.rand(2, 4, 4)
    expected, found = (masked_autoencoder_from_hf(source)(images, noise) for source in (module, tmp_path))
    assert torch.equal(found.predicted, expected.predicted) and found.masked.sum() == 16


@pytest.mark.parametrize(
    "make, problem",
    [
        (lambda: transformers.ViTMAEModel(transformers.ViTMAEConfig(**SMALL)), "ViTMAEForPreTraining, not ViTMAEModel"),
        (lambda: peer(decoder_intermediate_size=32), "MLP is not 4 times as wide"),
        (lambda: peer(qkv_bias=False), "without biases of attention"),
        (lambda: transformers.ViTMAEForPreTraining(transformers.ViTMAEConfig(**SMALL)), "sines and cosines"),
    ],
)
def test_what_is_not_supported_is_named(make, problem):
    with pytest.raises(UserError, match=problem):
        masked_autoencoder_from_hf(make())
