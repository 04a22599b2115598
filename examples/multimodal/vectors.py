"""Image files and texts as vectors of two towers."""

import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from core import UserError
from core.data.folders import find_files
from core.experiments.outputs import check_finite
from text import Tokenizer
from vision.augment import eval_transform
from vision.datasets import SUFFIXES
from vision.decoding import image_mode, read_image

from .two_towers import TwoTowers

BATCH = 32  # images


def find_images(path: Path) -> list[Path]:
    """An image file, or those below a directory."""
    if not path.is_dir():
        return [path]
    files = find_files(path, SUFFIXES)
    if not files:
        raise UserError(f"{path} holds no images: name a directory of image files.")
    return files


@torch.no_grad()
def image_vectors(model: TwoTowers, path: Path, source: str) -> tuple[list[Path], Float[Tensor, "images e"]]:
    """The vectors of an image file, or of those below a directory, and the files; files in a directory that cannot be
    read are left out, with a warning. source: of the model, for messages."""
    files, read, vectors = find_images(path), [], []
    for start in range(0, len(files), BATCH):
        images = []
        for file in files[start : start + BATCH]:
            try:
                images.append(read_pixels(model, file))
                read.append(file)
            except UserError as error:
                if file == path:
                    raise
                warnings.warn(f"{error} It is left out.", stacklevel=2)
        if images:
            vectors.append(model.of_images(torch.stack(images)))
    if not vectors:
        raise UserError(f"No image in {path} can be read.")
    found = torch.cat(vectors)
    check_finite(found, source)
    return read, found


def read_pixels(model: TwoTowers, path: Path) -> Float[Tensor, "c h w"]:
    """An image file as the model takes it."""
    config = model.config.image
    return eval_transform(config.image_format)(read_image(path, image_mode(config.channels)))


@torch.no_grad()
def text_vectors(
    model: TwoTowers, tokenizer: Tokenizer, texts: Sequence[str], templates: Sequence[str] = ("{}",), source: str = ""
) -> Float[Tensor, "texts e"]:
    """The vector of each text, or the mean direction of it in several templates (Radford et al. 2021, section 3.1.4).

    templates: each has {} where the text goes.
    """
    for template in templates:
        if "{}" not in template:
            raise UserError(f"The template {template!r} has no {{}}: write it where the text goes.")
    room = tokenizer.room(model.config.text.max_length)
    means = []
    for text in texts:
        written = [template.replace("{}", text) for template in templates]
        ids = [torch.tensor(tokenizer.frame(found[:room])) for found in tokenizer.encode(written)]
        means.append(F.normalize(model.text(ids).float(), dim=1).mean(dim=0))
    vectors = model.similarity(torch.stack(means))
    check_finite(vectors, source)
    return vectors
