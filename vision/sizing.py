"""How a model and its training follow the user's own images: see `core.experiments.sizing`."""

import math
from collections.abc import Collection
from statistics import median
from typing import Any

from core import pair, patch_grid
from core.data import few_per_class
from core.data.shards import some_of
from core.experiments.sizes import Size, regularisation
from core.experiments.sizing import Settings, Sizing

from .images import size_of
from .model import ViTConfig
from .pretrained import load_pretrained

LOOKED_AT = 200  # images, whose headers are read
PATCHES = 8  # along a side of a small image
PATCH = (2, 16)  # pixels of a patch's side: the smallest and the largest, powers of two
LIGHT = {"data.augment.crop": 0.5, "data.augment.policy": "", "data.augment.erase": 0.0}
"""Changes of the images for a tiny model, which has no time to learn from stronger ones."""
LARGEST = {"tiny": 128, "small": 224, "base": 224}  # pixels of an image's side
PLAIN = 64  # pixels of a side, up to which images are not cropped for evaluation


def sizing(experiment: Any, given: Collection[str]) -> Sizing:
    """given: the names of the fields that options set."""
    train = few_per_class(experiment.data.samples().train, experiment.data.per_class)
    sides = [min(size_of(image)) for image, _ in some_of(train, LOOKED_AT)]
    side = max(round(median(sides)), 1)
    start = None if experiment.init is None else load_pretrained(experiment.init).config

    def settings(size: Size | None) -> Settings:
        drop = {"model.encoder.drop_path": round(0.1 * regularisation(len(train)), 2)}
        if size is None:
            return drop
        found = {**drop, "model.positions": "sincos"}
        image_size = experiment.model.image_size
        if "model.image_size" not in given:
            image_size = min(side, LARGEST[size.name])
        longer = max(pair(image_size))
        patch = min(max(2 ** round(math.log2(longer / PATCHES)), PATCH[0]), PATCH[1])
        if "model.image_size" not in given:  # a whole number of patches
            image_size = max(round(image_size / patch), 1) * patch
        if size.name == "tiny":
            found |= LIGHT
        if not {"model.pool", "model.class_token", "model.registers"} & {*given}:
            found |= {"model.pool": "mean", "model.class_token": False}
        if longer <= PLAIN:
            found["model.preprocess.crop"] = 1.0
        return {**found, "model.image_size": image_size, "model.patch_size": patch}

    return Sizing(len(train), f"images, the usual one of {side} px", settings, count_tokens, start=start)


def count_tokens(config: ViTConfig) -> int:
    """Of an image of the model's size, class and register tokens included."""
    grid = patch_grid(config.image_size, config.patch_size, config.stride)
    return config.max_tokens or config.prefix + math.prod(grid)
