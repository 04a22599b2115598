"""Image files of many formats are read as images of 8 bits a channel."""

import contextlib
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import PIL
from jaxtyping import Float, UInt8
from PIL import ExifTags, Image, ImageOps
from PIL.TiffImagePlugin import BITSPERSAMPLE, PHOTOMETRIC_INTERPRETATION, SAMPLEFORMAT

from core import UserError
from core.files import File, first_line, open_file

DECODING = f"3, Pillow {PIL.__version__}"
"""The version of the decoding, for caches: the number is raised when read_image changes."""
LONGEST = 1000
"""Most times that the longer side may exceed the shorter one; resizing would need too much memory for more."""
UNSIGNED_16 = ("PNG", "TIFF", "JPEG2000", "PPM")
"""Formats of grey images for which Pillow returns numbers of 16 bits (for TIFF of BitsPerSample bits)."""
ON_ITS_SIDE = (5, 6, 7, 8)  # values of EXIF's Orientation
SIGNED = 2  # a SampleFormat of TIFF
WHITE_IS_ZERO = 0  # a PhotometricInterpretation of TIFF


def read_image(path: File, mode: str) -> Image.Image:
    """The first frame of an image file, rotated as its EXIF data say, as L (grey), RGB or RGBA.

    The 8 highest of 16 bits a channel are kept. Floating-point numbers reach from 0 (black) to 1 (white). Integers of
    32 bits and signed ones are refused, because their white is unknown. Transparency is removed without blending it
    with a background, unless the mode is RGBA.
    """
    with _opened(path) as image:
        image.load()
        with contextlib.suppress(Exception):  # damaged EXIF data give no orientation
            ImageOps.exif_transpose(image, in_place=True)
        image = _eight_bits(image, path)
        if image.mode == "LAB":
            image = image.convert("RGB")  # it cannot be converted to grey directly
        return image.convert(mode) if image.mode != mode else image


def read_size(path: File) -> tuple[int, int]:
    """Rows and columns of the image that `read_image` gives, by the file's header: no pixels are decoded.

    The one exception is a PNG file whose EXIF data, after the pixels, turn it on its side: its sides are swapped.
    """
    with _opened(path) as image:
        columns, rows = image.size
        # Of PNG, Pillow would decode the pixels to look for EXIF data behind them; the size of TIFF is of the turned
        # image already.
        if image.format == "TIFF" or (image.format == "PNG" and "exif" not in image.info):
            return rows, columns
        with contextlib.suppress(Exception):
            if image.getexif().get(ExifTags.Base.Orientation) in ON_ITS_SIDE:
                return columns, rows
        return rows, columns


@contextmanager
def _opened(path: File) -> Iterator[Image.Image]:
    """The first frame of an image file; what is wrong with it is one sentence."""
    try:
        # Pillow warns of files that it can read. The file is opened here, because Pillow would map an uncompressed TIFF
        # file into memory by its name, with rows of the wrong length if the image is rotated.
        with warnings.catch_warnings(action="ignore"), open_file(path, "image") as file, Image.open(file) as image:
            if max(image.size) > LONGEST * min(image.size):
                raise UserError(
                    f"The image {path} is {image.width} x {image.height} pixels: cut it, since its longer side must "
                    f"be at most {LONGEST} times its shorter one."
                )
            yield image
    except Image.UnidentifiedImageError:
        raise UserError(f"{path} is not an image that can be read.") from None
    except (UserError, MemoryError):
        raise
    except Exception as error:  # damaged files raise many kinds
        raise UserError(f"The image {path} cannot be read: {first_line(error)}.") from None


def image_mode(channels: int) -> str:
    modes = {1: "L", 3: "RGB", 4: "RGBA"}
    if channels not in modes:
        raise UserError(f"Image files have 1, 3 or 4 channels, not {channels}: set --model.channels.")
    return modes[channels]


def _eight_bits(image: Image.Image, path: File) -> Image.Image:
    """Pillow clips numbers of more than 8 bits; they are scaled here by the range of the format."""
    tags = getattr(image, "tag_v2", {}) if image.format == "TIFF" else {}
    if SIGNED in tags.get(SAMPLEFORMAT, ()):
        raise UserError(f"The image {path} holds signed numbers, whose black and white are unknown: save it unsigned.")
    if not image.mode.startswith(("I", "F")):
        return image
    values = np.asarray(image)
    if image.mode == "F":
        grey = _from_floats(values, path)
    elif image.format in UNSIGNED_16 and (image.mode != "I" or image.format != "TIFF"):
        bits = tags.get(BITSPERSAMPLE, (16,))[0]
        grey = (values >> (bits - 8)).astype(np.uint8)
    else:
        raise UserError(f"The image {path} holds numbers whose white is unknown: save it unsigned, with 8 or 16 bits.")
    if tags.get(PHOTOMETRIC_INTERPRETATION) == WHITE_IS_ZERO:
        grey = 255 - grey
    converted = Image.fromarray(grey)
    if (clear := image.info.get("transparency")) is not None:
        converted.putalpha(Image.fromarray(np.where(values == clear, 0, 255).astype(np.uint8)))
    return converted


def _from_floats(values: Float[np.ndarray, "h w"], path: File) -> UInt8[np.ndarray, "h w"]:
    low, high = values.min(), values.max()
    if not -1 / 510 <= low <= high <= 1 + 1 / 510:  # half a grey level may be due to rounding
        raise UserError(
            f"The image {path} holds floating-point numbers from {low:g} to {high:g}: scale them to 0 (black) to 1 "
            "(white)."
        )
    return (values * 255).round().clip(0, 255).astype(np.uint8)
