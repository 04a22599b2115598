"""Image files of all kinds: what they hold is scaled, not clipped; what cannot be read gets one sentence."""

import os
import random
import socket
from dataclasses import replace

import numpy as np
import pytest
import torch
from imagefiles import write_png, write_tiff
from PIL import Image, ImageCms, ImageOps

from core import UserError
from core.data.cache import DecodeCache
from vision import ViTConfig
from vision.augment import eval_transform
from vision.datasets import Folder
from vision.decoding import read_image
from vision.images import Images

GREYS = np.random.default_rng(0).integers(0, 65536, (6, 9)).astype(np.uint16)
GREYS[0, :2] = 0, 65535
COLOURS = np.random.default_rng(1).integers(0, 65536, (6, 9, 4)).astype(np.uint16)
FLOATS = (GREYS / 65535).astype(np.float32)
BITS = (GREYS >> 8).astype(np.uint8)


def decoded(path, mode="L"):
    image = read_image(path, mode)
    assert image.mode == mode
    return np.asarray(image)


WRITERS = {
    "png": lambda path: write_png(path, GREYS),
    "pillow.png": lambda path: Image.fromarray(GREYS).save(path),
    "little.tif": lambda path: write_tiff(path, GREYS),
    "big.tif": lambda path: write_tiff(path, GREYS, order=">"),
    "inverted.tif": lambda path: write_tiff(path, 65535 - GREYS, photometric=0),
    "twelve.tif": lambda path: write_tiff(path, GREYS >> 4, bits=12),
    "pgm": lambda path: Image.fromarray(GREYS).save(path),
    "jp2": lambda path: Image.fromarray(GREYS).save(path, irreversible=False),
}


@pytest.mark.parametrize("name", WRITERS)
def test_greys_of_more_than_8_bits_equal_their_8_bit_copies(name, tmp_path):
    WRITERS[name](tmp_path / f"a.{name}")
    for mode in ("L", "RGB", "RGBA"):
        assert (decoded(tmp_path / f"a.{name}", mode) == np.asarray(Image.fromarray(BITS).convert(mode))).all()


def test_a_portable_greymap_is_scaled_by_its_own_white(tmp_path):
    (tmp_path / "a.pgm").write_text("P2\n3 1\n1000\n0 500 1000\n")
    assert decoded(tmp_path / "a.pgm").tolist() == [[0, 128, 255]]


def test_colours_of_16_bits(tmp_path):
    highest = (COLOURS >> 8).astype(np.uint8)
    write_png(tmp_path / "rgb.png", COLOURS[..., :3])
    write_tiff(tmp_path / "rgb.tif", COLOURS[..., :3], photometric=2)
    write_png(tmp_path / "rgba.png", COLOURS)
    write_png(tmp_path / "la.png", COLOURS[..., :2])
    for name in ("rgb.png", "rgb.tif", "rgba.png"):
        assert (decoded(tmp_path / name, "RGB") == highest[..., :3]).all()
    assert (decoded(tmp_path / "rgba.png", "RGBA") == highest).all()
    assert (decoded(tmp_path / "la.png") == highest[..., 0]).all()
    assert (decoded(tmp_path / "la.png", "RGBA") == highest[..., [0, 0, 0, 1]]).all()


def test_a_transparent_grey_of_16_bits(tmp_path):
    write_png(tmp_path / "a.png", GREYS, clear=int(GREYS[2, 3]))
    assert (decoded(tmp_path / "a.png", "RGBA")[..., 3] == np.where(GREYS[2, 3] == GREYS, 0, 255)).all()
    assert (decoded(tmp_path / "a.png") == BITS).all()


def test_floats_run_from_0_to_1(tmp_path):
    write_tiff(tmp_path / "a.tif", FLOATS)
    write_tiff(tmp_path / "big.tif", FLOATS, order=">")
    write_tiff(tmp_path / "inverted.tif", 1 - FLOATS, photometric=0)
    write_tiff(tmp_path / "astray.tif", FLOATS * np.float32(1.001) - np.float32(0.0005))
    Image.fromarray(FLOATS).save(tmp_path / "a.pfm")
    for name in ("a.tif", "big.tif", "inverted.tif", "astray.tif", "a.pfm"):
        assert np.abs(decoded(tmp_path / name) - FLOATS * 255).max() <= 0.75


@pytest.mark.parametrize(
    "values, words",
    [
        (FLOATS * 255, "from 0 to 255: scale them to 0"),
        (FLOATS - 0.5, "from -0.5 to 0.5"),
        (np.where(FLOATS > 0.5, np.nan, FLOATS).astype(np.float32), "from nan to nan"),
        (np.where(FLOATS > 0.5, np.inf, FLOATS).astype(np.float32), "from 0 to inf"),
        (GREYS.astype(np.uint32), "white is unknown"),
        (GREYS.astype(np.int32), "signed"),
        (GREYS.astype(np.int16), "signed"),
        (BITS.astype(np.int8), "signed"),
        (FLOATS.astype(np.float64), "is not an image that can be read"),
    ],
)
def test_numbers_without_a_white_are_refused(values, words, tmp_path):
    write_tiff(tmp_path / "a.tif", values)
    with pytest.raises(UserError, match=f"a.tif .*{words}"):
        read_image(tmp_path / "a.tif", "L")


def test_a_16_bit_integer_image_in_a_format_without_a_white_is_refused(tmp_path):
    Image.fromarray(GREYS).save(tmp_path / "a.im")
    with pytest.raises(UserError, match="white is unknown"):
        read_image(tmp_path / "a.im", "L")


def test_two_classes_of_16_bit_greys_stay_apart(tmp_path):
    """Two levels that are both white once they are clipped."""
    for label, level in (("dim", 20_000), ("bright", 50_000)):
        (tmp_path / "data" / label).mkdir(parents=True)
        for number in range(4):
            Image.fromarray(np.full((8, 8), level + number, np.uint16)).save(
                tmp_path / "data" / label / f"{number}.png"
            )
    model = ViTConfig(image_size=8, patch_size=4, channels=1)
    data = Folder(path=tmp_path / "data", test_fraction=0.5).read(model.image_format)
    means = {data.labels[label]: round(float(image.mean()), 2) for image, label in data.test}
    assert means == {"dim": round(78 / 127.5 - 1, 2), "bright": round(195 / 127.5 - 1, 2)}


def make_image(mode):
    colours = Image.fromarray(np.random.default_rng(2).integers(0, 256, (12, 10, 3), dtype=np.uint8))
    if mode.endswith("A"):
        colours.putalpha(Image.fromarray(np.random.default_rng(3).integers(0, 256, (12, 10), dtype=np.uint8)))
    return colours.convert(mode)


HELD = {
    "1": ("png", "tif", "gif", "bmp", "pbm"),
    "L": ("png", "tif", "jpg", "gif", "bmp", "pgm", "jp2", "webp"),
    "LA": ("png", "jp2", "tif"),
    "P": ("png", "tif", "gif", "bmp"),
    "RGB": ("png", "tif", "jpg", "bmp", "ppm", "webp", "jp2", "avif"),
    "RGBA": ("png", "tif", "webp", "jp2", "gif", "tga", "avif"),
    "CMYK": ("jpg", "tif"),
    "YCbCr": ("jpg", "tif"),
}


@pytest.mark.parametrize("mode, kind", [(mode, kind) for mode, kinds in HELD.items() for kind in kinds])
def test_8_bit_images_are_what_timm_makes_of_them(mode, kind, tmp_path):
    """timm opens an image and converts it; in particular transparency is dropped."""
    make_image(mode).save(tmp_path / f"a.{kind}")
    for wanted in ("L", "RGB", "RGBA"):
        with Image.open(tmp_path / f"a.{kind}") as image:
            assert (decoded(tmp_path / f"a.{kind}", wanted) == np.asarray(image.convert(wanted))).all()


@pytest.mark.parametrize("transparency", [3, bytes([0, 128, 255, 7])])
def test_palettes_with_transparency(transparency, tmp_path):
    palette = make_image("P").quantize(4)
    palette.save(tmp_path / "a.png", transparency=transparency)
    assert (decoded(tmp_path / "a.png", "RGB") == np.asarray(palette.convert("RGB"))).all()
    alphas = np.array([255, 255, 255, 0] if transparency == 3 else list(transparency))
    assert (decoded(tmp_path / "a.png", "RGBA")[..., 3] == alphas[np.asarray(palette)]).all()


def test_lab_colours(tmp_path):
    lab = ImageCms.buildTransform(ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB")
    smooth = make_image("RGB").resize((40, 40))
    ImageCms.applyTransform(smooth, lab).save(tmp_path / "a.tif")
    for mode in ("L", "RGB"):
        away = decoded(tmp_path / "a.tif", mode).astype(int) - np.asarray(smooth.convert(mode))
        assert np.abs(away).mean() < 3


@pytest.mark.parametrize("kind", ["gif", "png", "webp", "tif"])
def test_of_several_frames_the_first_is_read(kind, tmp_path):
    frames = [Image.new("RGB", (8, 6), colour) for colour in ("red", "blue", "lime")]
    frames[0].save(tmp_path / f"a.{kind}", save_all=True, append_images=frames[1:], lossless=True)
    assert (decoded(tmp_path / f"a.{kind}", "RGB") == (255, 0, 0)).all()


@pytest.mark.parametrize("kind", ["jpg", "png", "webp", "tif"])
def test_images_are_turned_upright(kind, tmp_path):
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        make_image("RGB").save(tmp_path / f"a.{kind}", exif=exif, lossless=True)
        with Image.open(tmp_path / f"a.{kind}") as image:
            expected = np.asarray(ImageOps.exif_transpose(image))
        found = decoded(tmp_path / f"a.{kind}", "RGB")
        assert found.shape[:2] == ((12, 10) if orientation < 5 else (10, 12)) and (found == expected).all()


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "I;16"])
def test_a_tiff_file_is_turned_upright_whether_it_is_compressed_or_not(mode, tmp_path):
    image = Image.fromarray(GREYS) if mode == "I;16" else make_image("RGB").convert(mode)
    image.save(tmp_path / "lying.tif", tiffinfo={0x0112: 6})
    image.transpose(Image.Transpose.ROTATE_270).save(tmp_path / "upright.tif")
    assert (decoded(tmp_path / "lying.tif", "RGBA") == decoded(tmp_path / "upright.tif", "RGBA")).all()


@pytest.mark.parametrize(
    "exif", [b"Exif\0\0Exif\0\0II*\0\x08\0\0\0\0\0", b"Exif\0\0nonsense", b"Exif\0\0II*\0\xff\xff"]
)
def test_damaged_exif_data_leave_an_image_as_it_lies(exif, tmp_path):
    make_image("RGB").save(tmp_path / "a.jpg", exif=b"Exif\0\0" + exif)
    make_image("RGB").save(tmp_path / "b.jpg")
    assert (decoded(tmp_path / "a.jpg", "RGB") == decoded(tmp_path / "b.jpg", "RGB")).all()


def make_socket(path):
    with socket.socket(socket.AF_UNIX) as end:
        end.bind(str(path))


UNREADABLE = {
    "directory": (os.mkdir, "a directory, not an image"),
    "pipe": (os.mkfifo, "a pipe, socket or device, not an image"),
    "socket": (make_socket, "a pipe, socket or device, not an image"),
    "device": (lambda path: os.symlink("/dev/zero", path), "a pipe, socket or device, not an image"),
    "nothing": (lambda path: None, "There is no image"),
    "dangling": (lambda path: os.symlink("nowhere", path), "There is no image"),
    "empty": (lambda path: path.write_bytes(b""), "is not an image that can be read"),
    "one byte": (lambda path: path.write_bytes(b"\x89"), "is not an image that can be read"),
    "leftover of macOS": (
        lambda path: path.write_bytes(b"\0\x05\x16\x07\0\x02\0\0Mac OS X" + b"\0" * 100),
        "not an image",
    ),
    "truncated": (lambda path: (make_image("RGB").save(path), os.truncate(path, 150)), "cannot be read"),
    "bomb": (lambda path: path.write_bytes(b"P5 20000 20000 255\n"), "cannot be read: .*decompression bomb"),
    "long": (lambda path: Image.new("L", (60_000, 1)).save(path), "60000 x 1 pixels: cut it"),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_what_cannot_be_read_gets_one_sentence_that_names_it(name, tmp_path, recwarn):
    write, words = UNREADABLE[name]
    path = tmp_path / "._0.png"
    write(path)
    with pytest.raises(UserError, match=words) as error:
        read_image(path, "RGB")
    assert str(path) in str(error.value) and "\n" not in str(error.value) and not recwarn.list


def test_a_single_pixel_is_an_image(tmp_path):
    Image.new("RGB", (1, 1), "red").save(tmp_path / "a.png")
    assert decoded(tmp_path / "a.png", "RGB").tolist() == [[[255, 0, 0]]]


@pytest.mark.parametrize("kind", ["png", "jpg", "gif", "webp", "bmp", "tif", "ppm"])
def test_a_damaged_file_is_read_or_refused_in_one_sentence(kind, tmp_path):
    path, draws = tmp_path / f"a.{kind}", random.Random(kind)
    exif = Image.Exif()
    exif[0x0112] = 6
    make_image("RGB").save(path, **({} if kind in ("gif", "bmp", "ppm") else {"exif": exif}))
    whole = path.read_bytes()
    for _ in range(60):
        content = bytearray(whole)
        for _ in range(draws.randint(1, 8)):
            content[draws.randrange(len(content))] = draws.randrange(256)
        path.write_bytes(content[: draws.choice((len(content), draws.randrange(len(content))))])
        try:
            read_image(path, "RGB")
        except UserError as error:
            assert str(path) in str(error) and "\n" not in str(error)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
def test_the_cache_agrees_with_the_file(mode, tmp_path):
    for name, write in WRITERS.items():
        write(tmp_path / f"a.{name}")
    write_tiff(tmp_path / "floats.tif", FLOATS)
    make_image("P").save(tmp_path / "palette.png", transparency=3)
    samples = [(path, 0) for path in sorted(tmp_path.iterdir())]
    plain, cached = (Images(samples, np.asarray, mode, cache) for cache in (None, DecodeCache(tmp_path / "cache")))
    for _ in range(2):
        for path, _ in samples:
            assert (np.asarray(plain.read(path)) == np.asarray(cached.read(path))).all()
    assert len(list((tmp_path / "cache").iterdir())) == len(samples)


def test_a_cache_of_another_decoding_is_not_used(tmp_path, monkeypatch):
    make_image("RGB").save(tmp_path / "a.png")
    images = Images([(tmp_path / "a.png", 0)], np.asarray, "RGB", DecodeCache(tmp_path / "cache"))
    with monkeypatch.context() as earlier:
        earlier.setattr("vision.images.DECODING", "1")
        earlier.setattr("vision.images.read_image", lambda path, mode: Image.new(mode, (12, 10)))
        assert not np.asarray(images.read(tmp_path / "a.png")).any()
    assert np.asarray(images.read(tmp_path / "a.png")).any()


def test_the_pixels_go_through_the_transform(tmp_path):
    """From the file to the model: a 16-bit ramp covers the whole range of the model's input."""
    Image.fromarray(np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)).save(tmp_path / "a.png")
    model = ViTConfig(image_size=8, patch_size=4, channels=1)
    for channels, mode in ((1, "L"), (3, "RGB")):
        image = eval_transform(replace(model, channels=channels).image_format)(read_image(tmp_path / "a.png", mode))
        assert image.shape == (channels, 8, 8) and len(image.unique()) == 64
        torch.testing.assert_close(image[0].flatten(), torch.linspace(-1, 1, 64), rtol=0, atol=1 / 100)
