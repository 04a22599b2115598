"""ViTs of transformers on our ViT: equal outputs, on random weights, at their own and other image sizes."""

import json
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import save_file

from core import UserError, WeightsError
from tests.helpers.vision_peers import HF, HF_MLP, HF_SMALL, hf_peer
from vision import from_hf
from vision.augment import eval_transform
from vision.pretrained import load_pretrained

ONE_SIZE = ("SiglipForImageClassification", "Aimv2VisionModel", "Aimv2VisionModel, with biases")


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
    return body.mean(dim=1) if kind.startswith(("IJepa", "Siglip", "Aimv2")) else body[:, 0]


# transformers' classifier of SigLIP and AIMv2 take images of one size only.
SIZES = [(case, size) for case in HF for size in ((32, 32), (48, 40)) if case not in ONE_SIZE or size == (32, 32)]


@pytest.mark.parametrize("case, size", SIZES)
def test_outputs_are_equal(case, size):
    module, images = hf_peer(case), torch.randn(2, 3, *size)
    expected, ours = outputs(module, images), from_hf(module, image_size=size if size[0] != size[1] else None)
    with torch.no_grad():
        found = ours(images)
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("case", [case for case in HF if "Model" in case and case not in ("CLIPModel", "SiglipModel")])
def test_intermediate_layers_are_equal(case):
    module, images = hf_peer(case), torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        given = {"noise": torch.arange(16).float().expand(2, -1)} if case == "ViTMAEModel" else {}
        states = module(images, output_hidden_states=True, **given).hidden_states
        found = from_hf(module).intermediate(images, (0, 1))
    for layer, expected in enumerate(states[1:]):
        assert (found[layer].x - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("case", HF)
def test_a_directory_is_read_like_the_module(case, tmp_path):
    """Its weights have the names of earlier versions of transformers, the module's those of the present one."""
    module = hf_peer(case)
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
    write(tmp_path, hf_peer("ViTModel"), processor=name, **PROCESSORS[name])
    pixels = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    image = Image.fromarray(pixels).resize((80, 60), Image.Resampling.BICUBIC)
    ours = from_hf(tmp_path)
    expected = getattr(transformers, name)(**PROCESSORS[name])(image, return_tensors="pt")["pixel_values"][0]
    found = eval_transform(ours.config.image_format)(image)
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= 1.01 / 255 / min(ours.config.preprocess.std)


def test_another_size_of_the_image_processor_is_said(tmp_path):
    write(tmp_path, hf_peer("ViTModel"), size={"height": 48, "width": 48})
    with pytest.warns(UserWarning, match=r"of 48 x 48 pixels, but the model is for 32 x 32.*: give image_size=48 for"):
        assert from_hf(tmp_path).config.image_size == 32
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert from_hf(tmp_path, image_size=48).config.image_size == 48
        assert from_hf(hf_peer("ViTModel")).config.image_size == 32


@pytest.mark.parametrize(
    "settings, problem",
    [
        ({"do_resize": False}, "an image processor that does not resize"),
        ({"rescale_factor": 0.5}, r"rescaled by 0\.5"),
        ({"do_rescale": False}, "rescaled by 1"),
        ({"size": {"longest_edge": 32}}, "images resized to"),
        ({"size": {"shortest_edge": 32}}, "an image processor that keeps the shape of images"),
    ],
)
def test_what_is_not_supported_of_an_image_processor_is_named(settings, problem, tmp_path):
    write(tmp_path, hf_peer("ViTModel"), **settings)
    with pytest.raises(UserError, match=problem):
        from_hf(tmp_path)


def test_another_number_of_classes_gives_a_new_head():
    module = hf_peer("Dinov2ForImageClassification")
    with pytest.warns(UserWarning, match="The checkpoint's head is for 5 classes, not 3 classes"):
        ours = from_hf(module, classes=3)
    assert ours.head.weight.shape == (3, 64)
    features = from_hf(module, classes=5).features(torch.ones(1, 3, 32, 32))
    assert torch.equal(ours.features(torch.ones(1, 3, 32, 32)), features)


def test_labels_are_kept():
    config = transformers.ViTConfig(**HF_SMALL, **HF_MLP, id2label={0: "cat", 1: "dog"}, label2id={"cat": 0, "dog": 1})
    assert from_hf(transformers.ViTForImageClassification(config)).config.labels == ("cat", "dog")


@pytest.mark.parametrize("case", ["ViTForImageClassification", "DeiTForImageClassificationWithTeacher", "ViTModel"])
def test_a_config_that_names_no_class(case, tmp_path):
    module, images = hf_peer(case), torch.randn(2, 3, 32, 32)
    write(tmp_path, module)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "architectures": None}))
    expected = outputs(module, images)
    assert (from_hf(tmp_path)(images) - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("case", ["Dinov2Model", "Dinov2WithRegistersModel", "DINOv3ViTModel"])
def test_the_image_processor_of_models_for_any_size_says_which(case, tmp_path):
    """The config of DINOv2 says 518 pixels, its processor 224."""
    module, crop = hf_peer(case), {"size": {"shortest_edge": 56}, "crop_size": {"height": 48, "width": 48}}
    write(tmp_path, module, processor="BitImageProcessor", **crop)
    images = torch.randn(2, 3, 48, 48)
    expected, ours = outputs(module, images), from_hf(tmp_path)
    assert (ours.config.image_size, ours.config.preprocess.crop) == (48, 48 / 56)
    assert (ours(images) - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert from_hf(tmp_path, image_size=32).config.image_size == 32 == from_hf(module).config.image_size


def test_what_a_head_predicts_is_kept():
    """Several classes, or one number."""
    several = transformers.ViTConfig(**HF_SMALL, **HF_MLP, problem_type="multi_label_classification", num_labels=3)
    ours = from_hf(transformers.ViTForImageClassification(several))
    assert ours.config.multilabel and not ours.config.predicts_number
    number = transformers.ViTConfig(**HF_SMALL, **HF_MLP, problem_type="regression", num_labels=1)
    peer, images = transformers.ViTForImageClassification(number).eval(), torch.randn(2, 3, 32, 32)
    ours = from_hf(peer)
    assert ours.config.predicts_number and ours.config.labels == ()
    with torch.no_grad():
        torch.testing.assert_close(ours(images), peer(images).logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "make, problem",
    [
        (lambda: transformers.SwinModel(transformers.SwinConfig(depths=[1], num_heads=[2])), r"not SwinModel \(swin\)"),
        (lambda: torch.nn.Linear(2, 2), "not Linear"),
        (
            lambda: transformers.ViTForImageClassification(
                transformers.ViTConfig(**HF_SMALL, **HF_MLP, problem_type="regression", num_labels=2)
            ),
            "a regression of 2 numbers",
        ),
        (
            lambda: transformers.ViTModel(transformers.ViTConfig(**HF_SMALL, **HF_MLP, hidden_act="silu")),
            "activation 'silu'",
        ),
        (
            lambda: transformers.Aimv2VisionModel(transformers.Aimv2VisionConfig(**HF_SMALL, **HF_MLP)),
            "a head of AIMv2",
        ),
    ],
)
def test_what_is_not_supported_is_named(make, problem):
    with pytest.raises(UserError, match=problem):
        from_hf(make())


def test_missing_and_other_weights_are_named(tmp_path):
    module = hf_peer("ViTForImageClassification")
    weights = dict(module.state_dict())
    write(tmp_path, module, {key: t for key, t in weights.items() if key != "classifier.bias"})
    with pytest.raises(WeightsError, match=r"not in the checkpoint: head\.bias"):
        from_hf(tmp_path)
    write(tmp_path, module, {**weights, "vit.extra": torch.zeros(2)})
    with pytest.raises(WeightsError, match="no rule for: extra"):
        from_hf(tmp_path)


def test_a_directory_is_a_start_for_training(tmp_path):
    module = hf_peer("ViTForImageClassification")
    write(tmp_path, module)
    images = torch.randn(1, 3, 32, 32)
    torch.testing.assert_close(load_pretrained(str(tmp_path))(images), module(images).logits, rtol=1e-5, atol=1e-5)
