"""Small ViTs of other libraries with random weights."""

from collections.abc import Callable
from functools import partial

import timm
import torch
from torch import nn

SMALL = {"depth": 2, "embed_dim": 64, "num_heads": 4, "num_classes": 5}
SIDES = {14: 56, 16: 64}
"""Pixels of an image for each patch size."""

TIMM = {
    "RoPE-ViT, axial": "vit_small_patch16_rope_224",
    "RoPE-ViT, axial and learned positions": "vit_small_patch16_rope_ape_224",
    "RoPE-ViT, mixed": "vit_small_patch16_rope_mixed_224",
    "RoPE-ViT, mixed and learned positions": "vit_small_patch16_rope_mixed_ape_224",
    "SBB ViT, rotary": "vit_mediumd_patch16_rope_reg1_gap_256",
}


def timm_peer(name: str, **changes) -> nn.Module:
    """A timm model of this architecture, but small."""
    torch.manual_seed(0)
    side = SIDES[14 if "patch14" in name else 16]
    model = timm.create_model(name, **{**SMALL, "img_size": side, **changes}).eval()
    with torch.no_grad():
        for key, parameter in model.named_parameters():  # zeros and tiny positions would hide mistakes
            parameter.add_(torch.randn_like(parameter) * (1.0 if "pos_embed" in key else 0.2))
    return model


PEERS: dict[str, Callable[[], nn.Module]] = {family: partial(timm_peer, name) for family, name in TIMM.items()}
