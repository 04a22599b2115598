"""Adapters saved and loaded, alone and with the model."""

import copy

import pytest
import torch
from adapted import disturb, make

from core import EncoderConfig, UserError, adapters
from core.adapters import ROLES, Bottleneck, LoRA, Prompt
from vision import ViT, ViTConfig


def test_a_model_is_saved_with_its_adapters_as_they_stand(tmp_path):
    model, inputs = make()
    for name, spec in (("z", Bottleneck(width=4)), ("a", LoRA(rank=2, roles=ROLES)), ("m", Bottleneck(width=4))):
        adapters.add(model, spec, name)
        disturb(model, name)
    adapters.scale(model, "a", 0.5)
    adapters.scale(model, "z", 2.0)
    changed = model(*inputs)
    model.save_pretrained(tmp_path)
    again = ViT.from_pretrained(tmp_path).eval()
    assert adapters.names(again) == ["z", "a", "m"] and torch.equal(again(*inputs), changed)
    adapters.disable(model, "m")
    model.save_pretrained(tmp_path)
    assert torch.equal(ViT.from_pretrained(tmp_path).eval()(*inputs), model(*inputs))


@pytest.mark.parametrize("spec", [LoRA(rank=2), Bottleneck(width=4), Prompt(tokens=2)], ids=repr)
def test_an_adapter_is_as_strong_as_when_it_was_saved(spec, tmp_path):
    (start, inputs), (other, _) = make(), make()
    model = adapters.add(start, spec)
    disturb(model)
    adapters.scale(model, "default", 0.3)
    adapters.save(model, tmp_path)
    assert torch.equal(adapters.load(other, tmp_path)(*inputs), model(*inputs))


def test_an_adapter_for_another_model_is_refused(tmp_path):
    adapters.save(adapters.add(make()[0], LoRA(rank=2)), tmp_path)
    wide = ViT(ViTConfig(image_size=32, patch_size=4, encoder=EncoderConfig(dim=64, depth=4, heads=2)))
    deep = ViT(ViTConfig(image_size=32, patch_size=4, encoder=EncoderConfig(dim=32, depth=5, heads=2)))
    flat = ViT(ViTConfig(image_size=32, patch_size=4, encoder=EncoderConfig(dim=32, depth=3, heads=2)))
    for model, words in (
        (wide, r"blocks\.0\.attention\.qkv was \[96, 32\] there and is \[192, 64\] here"),
        (deep, r"lacks encoder\.blocks\.4\.attention\.qkv"),
        (flat, r"changes encoder\.blocks\.3\.attention\.qkv"),
        (make("text")[0], "for a ViT, not for a TextEncoder"),
    ):
        with pytest.raises(UserError, match=words):
            adapters.load(model, tmp_path)
    (tmp_path / "adapter.safetensors").write_bytes(b"broken")
    with pytest.raises(UserError, match="holds no adapter that can be read"):
        adapters.load(make()[0], tmp_path)


def test_the_head_is_kept_with_the_adapter(tmp_path):
    (start, inputs), (other, _), (again, _) = make(), make(), make()
    start.head.requires_grad_(False).weight.add_(1)
    model = adapters.add(copy.deepcopy(start), LoRA(rank=2))
    disturb(model)
    with torch.no_grad():
        model.head.weight += 1
    adapters.save(model, tmp_path)
    assert torch.equal(adapters.load(other, tmp_path)(*inputs), model(*inputs))
    alone = adapters.load(copy.deepcopy(start), tmp_path, beside=False)
    assert torch.equal(alone.head.weight, start.head.weight)
    again.head = torch.nn.Linear(32, 3)
    with pytest.raises(UserError, match=r"head\.(weight|bias) was .* there and is \[3.*\] here"):
        adapters.load(again, tmp_path)
    assert adapters.names(again) == []
    adapters.save(model, tmp_path, beside=False)
    assert torch.equal(adapters.load(copy.deepcopy(start), tmp_path).head.weight, start.head.weight)
