"""Small ViTs of other libraries with random weights."""

from collections.abc import Callable
from functools import partial

import timm
import torch
from torch import nn

SMALL = {"depth": 2, "embed_dim": 64, "num_heads": 4, "num_classes": 5}
SIDES = {14: 56, 16: 64}
"""Pixels of an image for each patch size."""

TIMM: dict[str, tuple[str, dict]] = {
    "RoPE-ViT, axial": ("vit_small_patch16_rope_224", {}),
    "RoPE-ViT, axial and learned positions": ("vit_small_patch16_rope_ape_224", {}),
    "RoPE-ViT, mixed": ("vit_small_patch16_rope_mixed_224", {}),
    "RoPE-ViT, mixed and learned positions": ("vit_small_patch16_rope_mixed_ape_224", {}),
    "SBB ViT, rotary": ("vit_mediumd_patch16_rope_reg1_gap_256", {}),
    "AIMv2": ("aimv2_large_patch14_224", {}),
    "Perception Encoder, core": ("vit_pe_core_tiny_patch16_384", {}),
    "Perception Encoder, core, gigantic": ("vit_pe_core_gigantic_patch14_448", {}),
    "Perception Encoder, lang": ("vit_pe_lang_large_patch14_448", {}),
    "Perception Encoder, spatial": ("vit_pe_spatial_tiny_patch16_512", {}),
    "ViT with norms at the end of branches": ("vit_base_patch16_rpn_224", {}),
    "EVA-02-E": ("eva02_enormous_patch14_clip_224", {}),
    "parallel ViT, SBB": ("vit_pwee_patch16_reg1_gap_256", {}),
    "parallel ViT, without biases": ("vit_base_patch16_xp_224", {}),
    "Sapiens2": ("vit_base_patch16_sapiens2", {"num_kv_heads": (4, 4)}),
    "Sapiens2, grouped-query attention": ("vit_large_patch16_sapiens2", {"num_kv_heads": (4, 2)}),
    "TIPSv2": ("vit_base_patch14_reg1_tipsv2", {}),
    "InternViT": ("vit_intern300m_patch14_448", {}),
    "RADIO": ("vit_base_patch16_radio_v3", {}),
    "DINOv3": ("vit_small_patch16_dinov3", {}),
}


def timm_peer(family: str, **changes) -> nn.Module:
    """A timm model of this family, but small."""
    torch.manual_seed(0)
    name, own = TIMM[family]
    side = SIDES[14 if "patch14" in name else 16]
    model = timm.create_model(name, **{**SMALL, "img_size": side, **own, **changes}).eval()
    with torch.no_grad():
        for key, parameter in model.named_parameters():  # zeros and tiny positions would hide mistakes
            parameter.add_(torch.randn_like(parameter) * (1.0 if "pos_embed" in key else 0.2))
    return model


PEERS: dict[str, Callable[[], nn.Module]] = {family: partial(timm_peer, family) for family in TIMM}
