"""Models are made without random values where all their weights are loaded afterwards."""

import pytest
import torch

from audio import AST, ASTConfig
from core import EncoderConfig, load
from core.checkpoints import unfilled
from text import TextConfig, TextEncoder
from vision import ViT, ViTConfig

ENCODER = EncoderConfig(dim=16, depth=2, heads=2, rotary="2d", layer_scale=0.1)
LINE = EncoderConfig(dim=16, depth=2, heads=2, rotary="1d")
MAKE = {
    "vision": lambda: ViT(ViTConfig(image_size=8, patch_size=4, classes=3, pool="attention", encoder=ENCODER)),
    "audio": lambda: AST(ASTConfig(n_mels=16, max_frames=32, patch_size=8, stride=8, classes=4, encoder=ENCODER)),
    "text": lambda: TextEncoder(TextConfig(vocab_size=30, max_length=20, head="tokens", encoder=LINE)),
}


@pytest.fixture
def garbage():
    """New memory holds NaN."""
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("name", MAKE)
def test_all_that_is_not_loaded_is_as_in_any_other_model(name, garbage):
    torch.manual_seed(0)
    made = MAKE[name]()
    state = torch.get_rng_state()
    empty = unfilled(MAKE[name])
    assert torch.equal(torch.get_rng_state(), state)
    assert any(parameter.isnan().any() for parameter in empty.parameters())
    for (key, buffer), other in zip(made.named_buffers(), empty.buffers(), strict=True):
        assert torch.equal(buffer, other), key
    marks = [[getattr(p, "no_decay", False) for p in model.parameters()] for model in (made, empty)]
    assert marks[0] == marks[1]
    load(empty, made.state_dict())
    for (key, value), other in zip(made.state_dict().items(), empty.state_dict().values(), strict=True):
        assert torch.equal(value, other), key


def test_a_new_head_has_random_values(garbage):
    torch.manual_seed(0)
    made = MAKE["vision"]()
    other = unfilled(MAKE["vision"], fresh=("head.",))
    load(other, made.state_dict(), fresh=("head.",))
    assert other.head.weight.isfinite().all() and other.head.weight.std() > 0
    assert not torch.equal(other.head.weight, made.head.weight)
