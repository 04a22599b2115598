"""What an image goes through before the model, to the pixel as in timm and transformers; and what fits its channels."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
from imagefiles import write_png, write_tiff
from PIL import Image
from timm.data import create_transform, resolve_data_config
from torchvision.transforms import v2
from transformers.models.bit import BitImageProcessor, BitImageProcessorPil
from transformers.models.clip import CLIPImageProcessor, CLIPImageProcessorPil
from transformers.models.deit import DeiTImageProcessor, DeiTImageProcessorPil
from transformers.models.siglip import SiglipImageProcessor, SiglipImageProcessorPil
from transformers.models.vit import ViTImageProcessor, ViTImageProcessorPil

from core import UserError, from_dict, to_dict
from vision import Preprocess, ViTConfig, from_timm
from vision.augment import TO_FLOAT, Augment, eval_transform, to_float, train_transform
from vision.decoding import image_mode, read_image
from vision.timm_models import timm_config

COLOURS = Preprocess(mean=(0.48, 0.45, 0.4), std=(0.22, 0.23, 0.26))
SIZES = ((40, 60), (61, 33), (20, 20), (7, 50), (1, 1))  # rows, columns


def images(mode="RGB", sizes=SIZES):
    draws = np.random.default_rng(0)
    return [Image.fromarray(draws.integers(0, 256, (*size, 3), dtype=np.uint8)).convert(mode) for size in sizes]


def timms(model: ViTConfig, crop_mode: str):
    size = (model.image_size,) * 2 if isinstance(model.image_size, int) else model.image_size
    preprocess = model.preprocess
    return create_transform(
        input_size=(model.channels, *size),
        mean=preprocess.mean,
        std=preprocess.std,
        crop_pct=preprocess.crop,
        crop_mode=crop_mode,
        interpolation=preprocess.interpolation,
    )


def assert_same(found, expected):
    """The same grey levels: the numbers are equal but for the last bit, in which timm's division by 255 may differ."""
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("crop_mode", ["center", "squash", "border"])
@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic", "box", "hamming", "lanczos"])
def test_evaluation_equals_timms(crop_mode, interpolation):
    chosen = replace(COLOURS, crop_mode=crop_mode, interpolation=interpolation)
    for size, crop in itertools.product((32, (24, 48), (48, 24)), (0.5, 0.875, 0.9, 0.95, 1.0, 1.1)):
        model = ViTConfig(image_size=size, patch_size=8, preprocess=replace(chosen, crop=crop))
        ours, theirs = eval_transform(model.image_format), timms(model, crop_mode)
        for image in images():
            assert_same(ours(image), theirs(image))


@pytest.mark.parametrize("channels", [1, 4])
@pytest.mark.parametrize("crop_mode", ["center", "squash", "border"])
def test_other_channels_equal_timms(channels, crop_mode):
    own = Preprocess(mean=(0.1, 0.4, 0.6, 0.9)[:channels], std=(0.2,) * channels, crop=0.9, crop_mode=crop_mode)
    model = ViTConfig(image_size=24, patch_size=8, channels=channels, preprocess=own)
    shared = replace(model, preprocess=replace(own, mean=(0.3,), std=(0.2,)))
    filled = replace(model, preprocess=replace(own, mean=(0.3,) * channels))
    for image in images(image_mode(channels)):
        assert_same(eval_transform(model.image_format)(image), timms(model, crop_mode)(image))
        assert_same(eval_transform(shared.image_format)(image), timms(filled, crop_mode)(image))


def test_random_interpolation_is_bilinear_in_evaluation_and_either_in_training():
    random = replace(COLOURS, interpolation="random")
    model = ViTConfig(image_size=24, patch_size=8, preprocess=random)
    named = {name: replace(model, preprocess=replace(random, interpolation=name)) for name in ("bilinear", "bicubic")}
    image = images()[0]
    assert_same(eval_transform(model.image_format)(image), eval_transform(named["bilinear"].image_format)(image))
    seen = set()
    for seed in range(12):
        made = {}
        for name, config in {"random": model, **named}.items():
            torch.manual_seed(seed)
            if name != "random":
                torch.multinomial(torch.ones(2), 1)  # the choice between the two
            made[name] = train_transform(config.image_format, Augment(crop=0.5))(image)
        seen |= {name for name in named if torch.equal(made[name], made["random"])}
    assert seen == set(named)


def test_training_without_a_crop_fits_as_evaluation_does():
    for crop_mode, size in itertools.product(("center", "squash", "border"), (24, (16, 40))):
        config = replace(COLOURS, crop_mode=crop_mode, crop=0.8)
        model = ViTConfig(image_size=size, patch_size=8, preprocess=config)
        whole = replace(model, preprocess=replace(config, crop=1.0))
        for image in images():
            assert_same(
                train_transform(model.image_format, Augment())(image), eval_transform(whole.image_format)(image)
            )


@pytest.mark.parametrize(
    "name, crop_mode, crop",
    [
        ("vit_tiny_patch16_224.augreg_in21k", "center", 0.9),
        ("vit_base_patch16_siglip_224.webli", "center", 0.9),
        ("vit_base_patch16_clip_384.laion2b_ft_in1k", "squash", 1.0),
        ("vit_medium_patch16_gap_384.sw_in12k_ft_in1k", "squash", 0.95),
        ("vit_small_patch16_lingbot.robbyant", "squash", 1.0),
        ("vit_little_patch16_reg4_gap_256.sbb_in1k", "center", 0.95),
        ("vit_small_patch14_reg4_dinov2.lvd142m", "center", 1.0),
        ("deit3_small_patch16_224.fb_in1k", "center", 0.9),
    ],
)
def test_stock_checkpoints_are_preprocessed_as_timm_does(name, crop_mode, crop):
    with torch.device("meta"):
        peer = timm.create_model(name)
        model = timm_config(peer)
    assert (model.preprocess.crop_mode, model.preprocess.crop) == (crop_mode, crop)
    theirs = create_transform(**resolve_data_config(model=peer))
    for image in images(sizes=((300, 400), (64, 50))):
        assert_same(eval_transform(model.image_format)(image), theirs(image))


PROCESSORS = {
    "ViT": (ViTImageProcessorPil, ViTImageProcessor, Preprocess(crop_mode="squash", interpolation="bilinear")),
    "DeiT": (DeiTImageProcessorPil, DeiTImageProcessor, Preprocess(crop_mode="squash", crop=224 / 256)),
    "DINOv2": (BitImageProcessorPil, BitImageProcessor, Preprocess(crop=224 / 256)),
    "CLIP": (CLIPImageProcessorPil, CLIPImageProcessor, Preprocess()),
    "SigLIP": (SiglipImageProcessorPil, SiglipImageProcessor, Preprocess(crop_mode="squash")),
}


@pytest.mark.parametrize("name", PROCESSORS)
def test_image_processors_of_transformers(name):
    """To the pixel those that resize with Pillow; those that resize tensors round otherwise, by half a grey level."""
    pillows, tensors, preprocess = PROCESSORS[name]
    shorter = {"size": {"shortest_edge": 256}} if name == "DINOv2" else {}
    pillows, tensors = pillows(**shorter), tensors(**shorter)
    preprocess = replace(preprocess, mean=tuple(pillows.image_mean), std=tuple(pillows.image_std))
    transform = eval_transform(ViTConfig(image_size=224, preprocess=preprocess).image_format)
    # Of these sizes an even number of pixels is cropped.
    for image in images(sizes=((224, 300), (448, 224), (100, 100), (64, 64))):
        expected = pillows(image, return_tensors="pt")["pixel_values"][0]
        assert_same(transform(image), expected.float())
        near = tensors(image, return_tensors="pt")["pixel_values"][0]
        levels = (transform(image) - near).abs() * torch.tensor(preprocess.std)[:, None, None] * 255
        assert levels.mean() < 0.5


def test_transformers_cuts_an_odd_rest_elsewhere():
    """The known difference: of 3 columns too many timm, as torchvision, cuts 2 on the left, and transformers 1."""
    processor = CLIPImageProcessorPil(image_mean=[0.5] * 3, image_std=[0.5] * 3)
    wide = images(sizes=((224, 227),))[0]
    ours = eval_transform(ViTConfig(image_size=224).image_format)(wide)
    theirs = processor(wide, return_tensors="pt")["pixel_values"][0].float()
    assert_same(ours[:, :, :-1], theirs[:, :, 1:])


WRITERS = {  # what is stored, and the 8 bits that it stands for
    "png, 16 bits": ("png", lambda path, pixels: write_png(path, pixels[..., 0].astype(np.uint16) << 8), "grey"),
    "png, 16 bits of colour": ("png", lambda path, pixels: write_png(path, pixels.astype(np.uint16) * 257), "RGB"),
    "tiff, 16 bits": ("tif", lambda path, pixels: write_tiff(path, pixels[..., 0].astype(np.uint16) * 257), "grey"),
    "tiff, floats": ("tif", lambda path, pixels: write_tiff(path, pixels[..., 0] / np.float32(255)), "grey"),
    "pgm, 16 bits": ("pgm", lambda path, p: Image.fromarray(p[..., 0].astype(np.uint16) * 257).save(path), "grey"),
    **{
        f"{kind}, {mode}": (kind, lambda path, pixels, mode=mode: Image.fromarray(pixels).convert(mode).save(path), "")
        for kind, modes in {
            "png": ("1", "L", "LA", "P", "RGB", "RGBA"),
            "tif": ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr"),
            "jpg": ("L", "RGB", "CMYK"),
            "webp": ("L", "RGB", "RGBA"),
            "gif": ("1", "L", "P", "RGB"),
            "bmp": ("1", "L", "P", "RGB", "RGBA"),
            "ppm": ("RGB",),
        }.items()
        for mode in modes
    },
}


def test_200_files_equal_timms(tmp_path):
    """All modes and formats, in random sizes, into random models: decoded and preprocessed as timm does."""
    draws, count = np.random.default_rng(0), 0
    for repeat, (name, (kind, write, plain)) in itertools.product(range(6), WRITERS.items()):
        path = tmp_path / f"{name}-{repeat}.{kind}"
        size = tuple(map(int, draws.integers(2, 90, 2)))
        pixels = np.asarray(Image.fromarray(draws.integers(0, 256, (*size, 3), dtype=np.uint8)))
        write(path, pixels)
        channels = int(draws.choice((1, 3)))
        crop_mode = str(draws.choice(("center", "squash", "border")))
        preprocess = Preprocess(
            mean=(0.4, 0.5, 0.6)[:channels],
            std=(0.2, 0.3, 0.4)[:channels],
            crop=float(draws.choice((0.875, 0.9, 1.0, 1.2))),
            crop_mode=crop_mode,
            interpolation=str(draws.choice(("nearest", "bilinear", "bicubic", "lanczos"))),
        )
        side = tuple(map(int, draws.integers(2, 7, 2) * 8))
        model = ViTConfig(image_size=side, patch_size=8, channels=channels, preprocess=preprocess)
        if plain:  # Pillow clips the file itself, and timm with it: the same image in 8 bits
            image = Image.fromarray(pixels[..., 0] if plain == "grey" else pixels)
        else:
            image = Image.open(path)
        mode = image_mode(channels)
        assert_same(
            eval_transform(model.image_format)(read_image(path, mode)), timms(model, crop_mode)(image.convert(mode))
        )
        count += 1
    assert count >= 200


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_mean_and_deviation_follow_the_channels(channels):
    model = ViTConfig(channels=channels, preprocess=COLOURS)
    assert model.preprocess.mean == pytest.approx((1.33 / 3,)) and model.preprocess.std == pytest.approx((0.71 / 3,))
    assert replace(ViTConfig(preprocess=COLOURS), channels=channels) == model
    assert from_dict(ViTConfig, to_dict(model)) == model
    assert from_dict(ViTConfig, {"channels": channels, "preprocess": to_dict(COLOURS)}) == model
    own = replace(COLOURS, mean=tuple(range(channels)), std=(1.0,))
    assert ViTConfig(channels=channels, preprocess=own).preprocess == own


@pytest.mark.parametrize(
    "channels, mean, words",
    [(3, (0.1, 0.2), "3 channels, not 2"), (1, (0.1,) * 4, "1 channels, not 4"), (4, (), "4 channels, not 0")],
)
def test_a_mean_of_other_channels_is_refused(channels, mean, words):
    with pytest.raises(UserError, match=f"preprocess.mean must have one number.* {words}"):
        ViTConfig(channels=channels, preprocess=Preprocess(mean=mean))


@pytest.mark.parametrize("channels", [1, 4])
def test_timm_models_of_other_channels_take_images(channels):
    name, small = "vit_tiny_patch16_224", {"img_size": 32, "depth": 1, "num_classes": 0}
    made, adapted = timm.create_model(name, in_chans=channels, **small), timm.create_model(name, **small)
    for model in (from_timm(made), from_timm(adapted, channels=channels)):
        image = eval_transform(model.config.image_format)(images(image_mode(channels))[0])
        assert image.shape == (channels, 32, 32) and model(image[None]).isfinite().all()


def test_old_configs_load_and_fit_as_before():
    """Those saved before there were crop modes: the centre of a square, and all of what is not square."""
    old = {"mean": [0.5], "std": [0.5], "crop": 0.9, "interpolation": "bilinear"}
    square = from_dict(ViTConfig, {"image_size": 24, "preprocess": old})
    other = from_dict(ViTConfig, {"image_size": [16, 48], "patch_size": 8, "preprocess": old})
    assert square.preprocess.crop_mode is other.preprocess.crop_mode is None
    for image in images():
        assert_same(eval_transform(square.image_format)(image), timms(square_means(square), "center")(image))
        assert_same(eval_transform(other.image_format)(image), timms(square_means(other), "squash")(image))


def square_means(model):
    return replace(model, preprocess=replace(model.preprocess, mean=(0.5,) * 3, std=(0.5,) * 3))


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
def test_images_become_floats_as_torchvision_makes_them(mode):
    draw = np.random.default_rng(0)
    for rows, columns in ((1, 1), (1, 7), (37, 91)):
        image = Image.fromarray(draw.integers(0, 256, (rows, columns, 4), dtype=np.uint8)).convert(mode)
        found = to_float(image)
        assert found.is_contiguous() and torch.equal(found, v2.Compose(TO_FLOAT)(image))
