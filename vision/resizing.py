"""Weights of a ViT for images of another size, patches of another size, or another number of channels."""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from jaxtyping import Float, Shaped
from timm.layers.patch_embed import resample_patch_embed
from timm.models import adapt_input_conv
from torch import Tensor

from core import UserError, WeightsError, pair, patch_grid, resize_positions

from .model import ViTConfig


def changed(stock: ViTConfig, changes: Mapping[str, Any]) -> ViTConfig:
    """A config with other values for some fields; an image size that leaves a rest is an error."""
    config = replace(stock, **changes)
    grid = patch_grid(config.image_size, config.patch_size)  # refuses a size that leaves a rest
    if config.max_tokens is not None:
        config = replace(config, max_tokens=config.prefix + math.prod(grid))
    return config


def resize(
    weights: Mapping[str, Shaped[Tensor, "..."]], old: ViTConfig, new: ViTConfig
) -> dict[str, Shaped[Tensor, "..."]]:
    """Weights of a ViT for another image size, patch size or number of channels."""
    weights = dict(weights)
    if (key := "embed.projection.weight") in weights:
        given, said = tuple(weights[key].shape[1:]), (old.channels, *pair(old.patch_size))
        if given != said:
            raise WeightsError(f"The checkpoint's patches have channels and size {given}, but {said} in its config")
        weights[key] = resize_patches(weights[key], pair(new.patch_size), new.channels)
    if (key := "embed.positions.weight") in weights and new.position_grid is None:
        # The old size of a timm model need not be a multiple of the patch size.
        sides = [zip(pair(c.image_size), pair(c.patch_size), strict=True) for c in (old, new)]
        grids: list[Any] = [tuple(side // patch for side, patch in sizes) for sizes in sides]
        prefix = old.class_token + old.registers if old.prefix_positions else 0
        weights[key] = resize_positions(weights[key], *grids, prefix=prefix, how=new.position_resize)
    return weights


def resize_patches(
    kernel: Float[Tensor, "d c h w"], patch_size: tuple[int, int], channels: int
) -> Float[Tensor, "d c2 h2 w2"]:
    """A patch projection for another patch size (Beyer et al. 2023, section 3.4) or number of channels."""
    if kernel.shape[1] != channels:
        if kernel.shape[1] != 3:
            raise UserError(
                f"A patch projection of 3 channels can be changed to {channels}, but not one of {kernel.shape[1]}."
            )
        kernel = adapt_input_conv(channels, kernel)
    return resample_patch_embed(kernel, list(patch_size))
