"""docs/timm.md is what the code says of timm's architectures."""

import re

import timm
import torch

from vision import architectures
from vision.meta import meta_model


def test_the_page_is_what_the_code_says(as_in_production):
    """A name that loads can't be lost without a word. If this fails rightly: `python -m vision.architectures`."""
    found, page = architectures.architectures(), architectures.OUT.read_text()
    listed = re.findall(r"^- `(\w+)`", page, flags=re.M)
    assert len(listed) > 200
    assert {name: found[name] for name in listed if found.get(name)} == {}
    if f"timm {timm.__version__} " in page:  # another version has other architectures
        assert architectures.page(found) == page


def test_a_model_without_values_is_as_any_other():
    with torch.device("meta"):
        expected = timm.create_model("vit_tiny_patch16_224")
    found = meta_model("vit_tiny_patch16_224")
    shapes = {key: tensor.shape for key, tensor in expected.state_dict().items()}
    assert {key: tensor.shape for key, tensor in found.state_dict().items()} == shapes
    assert all(parameter.is_meta and parameter.requires_grad for parameter in found.parameters())
