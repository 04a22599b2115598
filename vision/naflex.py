"""The embedding of timm's NaFlexVit, a ViT for images of any size and aspect ratio (SigLIP 2 NaFlex, C-RADIO)."""

import math
from collections.abc import Mapping
from typing import Any

from jaxtyping import Shaped
from timm.data.config import resolve_data_config
from torch import Tensor, nn

from core import Move, PositionResize
from core.checkpoints.keys import KeyMap

from .timm_parts import check, simple


def embedding_keys(module: Any) -> KeyMap:
    """The weights of a NaFlexVit's embedding under our keys."""
    embeds = module.embeds

    def as_kernel(weight: Shaped[Tensor, "..."]) -> Shaped[Tensor, "d c h w"]:
        """A linear projection of flattened patches as a convolution's kernel."""
        if weight.ndim == 4:
            return weight
        if not embeds.channels_last:
            return weight.unflatten(1, (embeds.in_chans, *embeds.patch_size))
        return weight.unflatten(1, (*embeds.patch_size, embeds.in_chans)).permute(0, 3, 1, 2).contiguous()

    return {
        "embeds.cls_token": Move("embed.class_token"),
        "embeds.reg_token": Move("embed.registers"),
        "embeds.pos_embed": Move("embed.positions.weight", lambda t: t.flatten(0, 2)),
        "embeds.pos_embed_y": Move("embed.positions.rows", lambda t: t[0]),
        "embeds.pos_embed_x": Move("embed.positions.columns", lambda t: t[0]),
        "embeds.proj.weight": Move("embed.projection.weight", as_kernel),
        "embeds.norm.{p}": "embed.norm.{p}",
        "embeds.proj.bias": "embed.projection.bias",
    }


def embedding_settings(module: Any) -> Mapping[str, Any]:
    """Fields of ViTConfig for a NaFlexVit's embedding.

    The longest sequence has the patches of an image of the size in timm's config. Positions are learned for a grid of
    their own, whatever the image size.
    """
    embeds = module.embeds
    learned = embeds.pos_embed_type in ("learned", "factorized")
    check(getattr(embeds, "norm_input", None) is None, "a norm before the patch projection")
    check(not (learned and embeds.pos_embed_use_grid_sample), "positions read by grid_sample")
    size = embeds.default_img_size or resolve_data_config(model=module)["input_size"][1:]
    resize = PositionResize(keep_aspect=learned and embeds.pos_embed_ar_preserving)
    if embeds.pos_embed_type == "learned":
        mode = embeds.pos_embed_interp_mode
        check(mode in ("bicubic", "bilinear"), f"positions interpolated by {mode!r}")
        resize = PositionResize(
            mode=mode,
            antialias=embeds.pos_embed_antialias,
            align_corners=embeds.pos_embed_align_corners,
            keep_aspect=embeds.pos_embed_ar_preserving,
        )
    prefix = embeds.num_prefix_tokens
    return {
        "image_size": simple(size),
        "max_tokens": prefix + math.prod(side // patch for side, patch in zip(size, embeds.patch_size, strict=True)),
        "patch_size": simple(embeds.patch_size),
        "channels": embeds.in_chans,
        "class_token": embeds.cls_token is not None,
        "registers": embeds.num_reg_tokens,
        "positions": {"learned": "learned", "factorized": "factorised"}.get(embeds.pos_embed_type, "none"),
        "position_grid": tuple(embeds.pos_embed_grid_size) if learned else None,
        "position_resize": resize,
        "prefix_positions": False,
        "patch_bias": embeds.proj.bias is not None,
        "patch_norm": not isinstance(embeds.norm, nn.Identity),
    }
