"""Files that cannot be predicted, of many kinds, each with words of the reason that must be given."""

import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import soundfile
from imagefiles import write_tiff
from PIL import Image

Kinds = dict[str, tuple[Callable[[Path], object], str]]


def png_of_size(path: Path, columns: int, rows: int) -> None:
    """A PNG file that states a size, and has hardly any pixels."""
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", columns, rows, 8, 2, 0, 0, 0)), (b"IDAT", zlib.compress(bytes(100)))]
    parts = (
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in [*chunks, (b"IEND", b"")]
    )
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))


def cut_image(path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (60, 60, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path, format="PNG")
    path.write_bytes(path.read_bytes()[:3000])


def wav(path: Path, samples: np.ndarray | None = None) -> None:
    samples = np.zeros(1600) if samples is None else samples
    soundfile.write(path, samples, 16_000, format="WAV", subtype="FLOAT")


def cut_flac(path: Path) -> None:
    noise = np.random.default_rng(0).normal(0, 0.1, 16_000)
    soundfile.write(path, noise, 16_000, format="FLAC")
    path.write_bytes(path.read_bytes()[:10_000])


ANY: Kinds = {
    "empty": (lambda path: path.touch(), "empty file"),
    "directory": (lambda path: path.mkdir(), "is a directory"),
    "broken link": (lambda path: path.symlink_to("nowhere"), "here is no"),
    "link to itself": (lambda path: path.symlink_to(path.name), "cannot be read: Too many levels of symbolic links"),
    "pipe": (os.mkfifo, "is a pipe, socket or device"),
    "missing": (lambda path: None, "here is no"),
}
IMAGES: Kinds = ANY | {
    "cut off": (cut_image, "cannot be read"),
    "text": (lambda path: path.write_text("not an image\n" * 50), "is not an image that can be read"),
    "sound": (wav, "is not an image that can be read"),
    "bomb": (lambda path: png_of_size(path, 60_000, 60_000), "decompression bomb"),
    "zero size": (lambda path: png_of_size(path, 0, 0), "be read"),
    "not a number": (
        lambda path: write_tiff(path, np.full((8, 8), np.nan, dtype=np.float32)),
        "floating-point numbers",
    ),
}
CLIPS: Kinds = ANY | {
    "cut off": (cut_flac, "is broken"),
    "text": (lambda path: path.write_text("not a clip\n" * 50), "is not an audio file"),
    "image": (lambda path: Image.new("RGB", (8, 8)).save(path, format="PNG"), "is not an audio file"),
    "not a number": (lambda path: wav(path, np.full(1600, np.nan)), "holds samples that are not numbers"),
    "no samples": (lambda path: wav(path, np.zeros(0)), "has no samples"),
    "too long": (lambda path: wav(path, np.zeros(64_000)), "is longer than"),
}
