"""ViTs of transformers on our ViT: equal outputs, on random weights, at their own and other image sizes."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import save_file

from core import UserError, WeightsError
from vision import from_hf
from vision.augment import eval_transform
from vision.pretrained import load_pretrained

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 32, "patch_size": 8}
MLP = {"intermediate_size": 48}
BEIT = {"use_absolute_position_embeddings": True, "use_mask_token": True, "num_labels": 5}
CASES = {
    "ViTModel": ("ViTConfig", MLP),
    "ViTForImageClassification": ("ViTConfig", MLP | {"num_labels": 5, "qkv_bias": False}),
    "ViTMAEModel": ("ViTMAEConfig", MLP | {"mask_ratio": 0.0}),
    "ViTMAEForPreTraining": ("ViTMAEConfig", MLP | {"mask_ratio": 0.0}),
    "DeiTModel": ("DeiTConfig", MLP),
    "DeiTForImageClassification": ("DeiTConfig", MLP | {"num_labels": 5}),
    "DeiTForImageClassificationWithTeacher": ("DeiTConfig", MLP | {"num_labels": 5}),
    "IJepaModel": ("IJepaConfig", MLP),
    "IJepaForImageClassification": ("IJepaConfig", MLP | {"num_labels": 5}),
    "BeitModel": ("BeitConfig", MLP | {"use_relative_position_bias": True, "layer_scale_init_value": 0.0}),
    "BeitForImageClassification": (
        "BeitConfig",
        MLP | BEIT | {"use_shared_relative_position_bias": True, "use_mean_pooling": False},
    ),
    "Data2VecVisionModel": ("Data2VecVisionConfig", MLP | BEIT),
    "Data2VecVisionForImageClassification": (
        "Data2VecVisionConfig",
        MLP | {"use_relative_position_bias": True, "num_labels": 5},
    ),
    "Dinov2Model": ("Dinov2Config", {"mlp_ratio": 2}),
    "Dinov2ForImageClassification": ("Dinov2Config", {"mlp_ratio": 2, "use_swiglu_ffn": True, "num_labels": 5}),
    "Dinov2WithRegistersModel": ("Dinov2WithRegistersConfig", {"mlp_ratio": 2, "num_register_tokens": 3}),
    "Dinov2WithRegistersForImageClassification": (
        "Dinov2WithRegistersConfig",
        {"mlp_ratio": 4, "use_swiglu_ffn": True, "num_labels": 5},
    ),
    "DINOv3ViTModel": ("DINOv3ViTConfig", MLP | {"num_register_tokens": 2}),
    "DINOv3ViTModel, gated": (
        "DINOv3ViTConfig",
        MLP | {"use_gated_mlp": True, "hidden_act": "silu", "key_bias": True, "mlp_bias": False, "proj_bias": False},
    ),
    "CLIPVisionModel": ("CLIPVisionConfig", MLP),
    "CLIPVisionModelWithProjection": ("CLIPVisionConfig", MLP | {"projection_dim": 12}),
    "CLIPForImageClassification": ("CLIPConfig", MLP | {"num_labels": 5}),
    "CLIPModel": ("CLIPConfig", MLP),
    "SiglipVisionModel": ("SiglipVisionConfig", MLP),
    "SiglipVisionModel, without a head": ("SiglipVisionConfig", MLP | {"vision_use_head": False}),
    "SiglipForImageClassification": ("SiglipConfig", MLP | {"num_labels": 5}),
    "SiglipModel": ("SiglipConfig", MLP),
}
ONE_SIZE = "SiglipForImageClassification"
TEXT = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "vocab_size": 50}


def stock(case: str) -> torch.nn.Module:
    """A model of transformers, every weight of it at random."""
    name, (config_name, own) = case.partition(",")[0], CASES[case]
    make, own = getattr(transformers, config_name), dict(own)
    if config_name in ("CLIPConfig", "SiglipConfig"):
        labels = {key: own.pop(key) for key in ("num_labels",) if key in own}
        config = make(vision_config=SMALL | own, text_config=TEXT, projection_dim=12, **labels)
    else:
        config = make(**SMALL, **own)
    torch.manual_seed(0)
    module = getattr(transformers, name)(config).eval()
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return module


def outputs(module: torch.nn.Module, images: torch.Tensor) -> torch.Tensor:
    """What ours is equal to: logits, an image's embedding, or its features."""
    kind = type(module).__name__
    always = images.shape[2] == 32 or kind.startswith(("Dinov2", "DINOv3"))
    resized = {} if always else {"interpolate_pos_encoding": True}
    with torch.no_grad():
        if kind in ("CLIPModel", "SiglipModel"):
            found = module.get_image_features(images, **resized)
            return found if isinstance(found, torch.Tensor) else found.pooler_output
        if kind == "ViTMAEForPreTraining":
            module, kind = module.vit, "ViTMAEModel"
        given = {"noise": torch.arange(images.shape[2] // 8 * (images.shape[3] // 8)).float().expand(len(images), -1)}
        found = module(images, **resized, **(given if kind == "ViTMAEModel" else {}))
    for name in ("logits", "image_embeds"):
        if getattr(found, name, None) is not None:
            return getattr(found, name)
    if kind.startswith(("CLIP", "Siglip", "Beit", "Data2Vec")) and found.pooler_output is not None:
        return found.pooler_output
    body = found.last_hidden_state
    if kind == "Data2VecVisionModel":  # without a pooler
        return body[:, 1:].mean(dim=1)
    return body.mean(dim=1) if kind.startswith(("IJepa", "Siglip")) else body[:, 0]


# transformers' classifier of SigLIP takes images of one size only.
SIZES = [(case, size) for case in CASES for size in ((32, 32), (48, 40)) if case != ONE_SIZE or size == (32, 32)]


@pytest.mark.parametrize("case, size", SIZES)
def test_outputs_are_equal(case, size):
    module, images = stock(case), torch.randn(2, 3, *size)
    expected, ours = outputs(module, images), from_hf(module, image_size=size if size[0] != size[1] else None)
    with torch.no_grad():
        found = ours(images)
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("case", ["ViTModel", "Dinov2WithRegistersModel", "DINOv3ViTModel", "CLIPVisionModel"])
def test_intermediate_layers_are_equal(case):
    module, images = stock(case), torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        states = module(images, output_hidden_states=True).hidden_states
        found = from_hf(module).intermediate(images, (0, 1))
    for layer, expected in enumerate(states[1:]):
        assert (found[layer].x - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("case", CASES)
def test_a_directory_is_read_like_the_module(case, tmp_path):
    """Its weights have the names of earlier versions of transformers, the module's those of the present one."""
    module = stock(case)
    module.save_pretrained(tmp_path)
    own = from_hf(module)
    with pytest.raises(UserError, match=r"no preprocessor_config\.json"):
        from_hf(tmp_path)
    processor = {"image_processor_type": "ViTImageProcessor", "size": {"height": 32, "width": 32}}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))
    ours = from_hf(tmp_path)
    assert replace(ours.config, preprocess=own.config.preprocess) == own.config
    assert all(torch.equal(tensor, own.state_dict()[key]) for key, tensor in ours.state_dict().items())


def write(folder, module, weights=None, processor="ViTImageProcessor", **settings):
    module.save_pretrained(folder)
    if weights is not None:
        save_file(weights, folder / "model.safetensors")
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_processor_type": processor, **settings}))


PROCESSORS = {
    "ViTImageProcessor": {"size": {"height": 32, "width": 32}},
    "DeiTImageProcessor": {"size": {"height": 40, "width": 40}, "crop_size": {"height": 32, "width": 32}},
    "BitImageProcessor": {"size": {"shortest_edge": 37}, "crop_size": {"height": 32, "width": 32}},
    "CLIPImageProcessor": {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}},
    "SiglipImageProcessor": {"size": {"height": 32, "width": 32}, "resample": 3},
}


@pytest.mark.parametrize("name", PROCESSORS)
def test_images_are_prepared_as_by_the_image_processor(name, tmp_path):
    """Up to one step of 256 of a pixel: transformers may resize tensors, not images."""
    write(tmp_path, stock("ViTModel"), processor=name, **PROCESSORS[name])
    pixels = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    image = Image.fromarray(pixels).resize((80, 60), Image.Resampling.BICUBIC)
    ours = from_hf(tmp_path)
    expected = getattr(transformers, name)(**PROCESSORS[name])(image, return_tensors="pt")["pixel_values"][0]
    found = eval_transform(ours.config.image_format)(image)
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= 1.01 / 255 / min(ours.config.preprocess.std)


@pytest.mark.parametrize(
    "settings, problem",
    [
        ({"do_resize": False}, "an image processor that does not resize"),
        ({"rescale_factor": 0.5}, r"rescaled by 0\.5"),
        ({"size": {"longest_edge": 32}}, "images resized to"),
    ],
)
def test_what_is_not_supported_of_an_image_processor_is_named(settings, problem, tmp_path):
    write(tmp_path, stock("ViTModel"), **settings)
    with pytest.raises(UserError, match=problem):
        from_hf(tmp_path)


def test_another_number_of_classes_gives_a_new_head():
    module = stock("Dinov2ForImageClassification")
    with pytest.warns(UserWarning, match="The checkpoint's head is for 5 classes, not 3 classes"):
        ours = from_hf(module, classes=3)
    assert ours.head.weight.shape == (3, 64)
    features = from_hf(module, classes=5).features(torch.ones(1, 3, 32, 32))
    assert torch.equal(ours.features(torch.ones(1, 3, 32, 32)), features)


def test_labels_are_kept():
    config = transformers.ViTConfig(**SMALL, **MLP, id2label={0: "cat", 1: "dog"}, label2id={"cat": 0, "dog": 1})
    assert from_hf(transformers.ViTForImageClassification(config)).config.labels == ("cat", "dog")


@pytest.mark.parametrize(
    "make, problem",
    [
        (lambda: transformers.SwinModel(transformers.SwinConfig(depths=[1], num_heads=[2])), r"not SwinModel \(swin\)"),
        (lambda: torch.nn.Linear(2, 2), "not Linear"),
        (
            lambda: transformers.ViTForImageClassification(
                transformers.ViTConfig(**SMALL, **MLP, problem_type="regression", num_labels=1)
            ),
            "a regression",
        ),
        (lambda: transformers.ViTModel(transformers.ViTConfig(**SMALL, **MLP, hidden_act="silu")), "activation 'silu'"),
    ],
)
def test_what_is_not_supported_is_named(make, problem):
    with pytest.raises(UserError, match=problem):
        from_hf(make())


def test_missing_and_other_weights_are_named(tmp_path):
    module = stock("ViTForImageClassification")
    weights = dict(module.state_dict())
    write(tmp_path, module, {key: t for key, t in weights.items() if key != "classifier.bias"})
    with pytest.raises(WeightsError, match=r"not in the checkpoint: head\.bias"):
        from_hf(tmp_path)
    write(tmp_path, module, {**weights, "vit.extra": torch.zeros(2)})
    with pytest.raises(WeightsError, match="no rule for: extra"):
        from_hf(tmp_path)


def test_a_directory_is_a_start_for_training(tmp_path):
    module = stock("ViTForImageClassification")
    write(tmp_path, module)
    images = torch.randn(1, 3, 32, 32)
    torch.testing.assert_close(load_pretrained(str(tmp_path))(images), module(images).logits, rtol=1e-5, atol=1e-5)
