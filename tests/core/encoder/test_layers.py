"""The groups of parameters by layer, for every kind of model in the repository."""

import pytest
from torch import nn

from audio import AST, ASTConfig
from core import Encoder, EncoderConfig
from core.encoder.layers import layer_groups
from core.objectives.masked_patches import MaskedAutoencoder
from examples.multimodal import ContrastiveModel, FusedModel, MultimodalConfig
from text import TextConfig, TextEncoder
from vision import ViT, ViTConfig
from vision.train import digits_mae

SMALL = EncoderConfig(dim=32, depth=2, heads=2)
BLOCKS = [("embeddings", 3), ("block 0", 2), ("block 1", 1), ("output", 0)]


def summary(model):
    """Names and distances of the groups; each parameter must be in exactly one, under its own name."""
    groups = layer_groups(model)
    names = [name for group in groups for name in group.parameters]
    assert sorted(names) == sorted(name for name, _ in model.named_parameters())
    for group in groups:
        for name, parameter in group.parameters.items():
            assert parameter is model.get_parameter(name)
    return [(group.name, group.distance) for group in groups]


def group_names(model):
    return {name: group.name for group in layer_groups(model) for name in group.parameters}


@pytest.mark.parametrize(
    "model",
    [
        ViT(ViTConfig(encoder=SMALL, pool="attention")),
        AST(ASTConfig(encoder=SMALL)),
        TextEncoder(TextConfig(encoder=SMALL)),
    ],
    ids=["image", "audio", "text"],
)
def test_a_model_of_one_encoder(model):
    assert summary(model) == BLOCKS
    for name, group in group_names(model).items():
        match name.split("."):
            case ["embed", *_]:
                assert group == "embeddings"
            case ["encoder", "blocks", number, *_]:
                assert group == f"block {number}"
            case _:
                assert group == "output"


def test_layers_that_share_a_block_are_one_group():
    config = EncoderConfig(dim=32, depth=6, heads=2, shared_groups=2, input_norm=True)
    model = TextEncoder(TextConfig(encoder=config, head="tokens"))
    assert summary(model) == BLOCKS
    found = group_names(model)
    assert found["embed.words.weight"] == found["encoder.input_norm.weight"] == "embeddings"  # the head uses it again
    assert "head.out.weight" not in found


def test_several_encoders_stand_side_by_side():
    config = MultimodalConfig(towers=True, encoder=SMALL)
    model = ContrastiveModel(config)
    blocks = [(f"encoders.{i} block {j}", 2 - j) for i in range(3) for j in range(2)]
    assert summary(model) == [("embeddings", 3), *blocks, ("output", 0)]
    found = group_names(model)
    assert found["encoders.1.blocks.1.mlp.up.weight"] == "encoders.1 block 1"
    assert {group for name, group in found.items() if name.startswith("embed.")} == {"embeddings"}
    assert {group for name, group in found.items() if name.startswith(("projections.", "similarity."))} == {"output"}


def test_one_encoder_in_a_list_needs_no_path():
    assert summary(ContrastiveModel(MultimodalConfig(encoder=SMALL))) == BLOCKS
    model = FusedModel(MultimodalConfig(encoder=SMALL, classes=3))
    assert summary(model) == BLOCKS and group_names(model)["class_token"] == "embeddings"


def test_encoders_of_different_depths_end_at_the_same_distance():
    class Pair(nn.Module):
        """Two whole models, and what follows both."""

        def __init__(self):
            super().__init__()
            self.image = ViT(ViTConfig(encoder=EncoderConfig(dim=32, depth=1, heads=2)))
            self.text = TextEncoder(TextConfig(encoder=SMALL))
            self.out = nn.Linear(2, 2)

    blocks = [("image.encoder block 0", 1), ("text.encoder block 0", 2), ("text.encoder block 1", 1)]
    assert summary(Pair()) == [("embeddings", 3), *blocks, ("output", 0)]
    found = group_names(Pair())
    assert found["text.embed.words.weight"] == found["image.embed.projection.weight"] == "embeddings"
    assert found["image.head.weight"] == found["out.weight"] == "output"


def test_a_masked_autoencoder_counts_the_encoder_of_its_model():
    config = digits_mae()
    model = MaskedAutoencoder(ViT(config.model), config.masked, 4)
    depth = config.model.encoder.depth
    assert summary(model) == [
        ("embeddings", depth + 1),
        *((f"block {i}", depth - i) for i in range(depth)),
        ("output", 0),
    ]
    found = group_names(model)
    assert found["model.embed.projection.weight"] == "embeddings"
    assert {group for name, group in found.items() if not name.startswith("model.")} == {"output"}


def test_an_encoder_alone_and_a_model_without_one():
    assert summary(Encoder(SMALL)) == BLOCKS[1:]
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 4))
    assert summary(model) == [("output", 0)]
    assert summary(nn.Identity()) == []
