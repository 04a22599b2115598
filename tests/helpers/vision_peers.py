"""Small ViTs of other libraries with random weights."""

from collections.abc import Callable
from functools import partial
from typing import Any

import timm
import torch
import transformers
from torch import nn

SMALL = {"depth": 2, "embed_dim": 64, "num_heads": 4, "num_classes": 5}
SIDES = {14: 56, 16: 64}
"""Pixels of an image for each patch size."""

TIMM: dict[str, tuple[str, dict]] = {
    "ViT": ("vit_small_patch16_224", {}),
    "DeiT III": ("deit3_small_patch16_224", {}),
    "DINOv2": ("vit_small_patch14_reg4_dinov2", {}),
    "CLIP": ("vit_base_patch16_clip_quickgelu_224", {}),
    "SigLIP": ("vit_base_patch16_siglip_224", {}),
    "EVA-02": ("eva02_tiny_patch14_224", {}),
    "DeiT, distilled": ("deit_tiny_distilled_patch16_224", {}),
    "BEiT": ("beit_base_patch16_224", {}),
    "BEiT-3": ("beit3_base_patch16_224", {}),
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
    return _random(timm.create_model(TIMM[family][0], **timm_arguments(family), **changes))


def timm_arguments(family: str) -> dict[str, Any]:
    """What makes timm's model of this family small."""
    name, own = TIMM[family]
    return {**SMALL, "img_size": SIDES[14 if "patch14" in name else 16], **own}


NAFLEX: dict[str, tuple[str, dict]] = {
    "siglip": ("naflexvit_base_patch16_siglip", {}),
    "gap": ("naflexvit_base_patch16_gap", {}),
    "par_gap": ("naflexvit_base_patch16_par_gap", {}),
    "parfac_gap": ("naflexvit_base_patch16_parfac_gap", {}),
    "fac_gap": ("naflexvit_base_patch16_gap", {"pos_embed": "factorized", "pos_embed_grid_size": (7, 12)}),
    "map": ("naflexvit_base_patch16_map", {}),
    "map over registers": ("naflexvit_base_patch16_map", {"pool_include_prefix": True}),
    "so150m2 map": ("naflexvit_so150m2_patch16_reg1_map", {}),
    "C-RADIOv3": ("naflexvit_base_patch16_radio_v3", {"pos_embed_grid_size": (24, 24)}),
    "C-RADIOv4": ("naflexvit_so400m_patch16_radio_v4", {"pos_embed_grid_size": (24, 24)}),
    "max, class token, grid not square": (
        "naflexvit_base_patch16_gap",
        {"global_pool": "max", "class_token": True, "pos_embed_grid_size": (6, 10), "pos_embed_antialias": False},
    ),
    "bicubic by corners": ("naflexvit_base_patch16_par_gap", {"pos_embed_align_corners": True}),
    "no positions": ("naflexvit_base_patch16_gap", {"pos_embed": "none"}),
    "channels first": ("naflexvit_base_patch16_gap", {"patchify_channels_last": False}),
    "patches not square": ("naflexvit_base_patch16_gap", {"patch_size": (16, 8), "in_chans": 2}),
    "axial": ("naflexvit_base_patch16_gap", {"rope_type": "axial"}),
    "axial, halves, columns first, query-key norm": (
        "naflexvit_base_patch16_gap",
        {"rope_type": "axial", "rope_rotate_half": True, "rope_grid_indexing": "xy", "qk_norm": True},
    ),
    "dinov3": ("naflexvit_base_patch16_gap", {"rope_type": "dinov3", "rope_rotate_half": True, "class_token": True}),
    "dinov3, neighbours, query-key norm, SwiGLU": (
        "naflexvit_base_patch16_gap",
        {"rope_type": "dinov3", "rope_grid_indexing": "xy", "qk_norm": True, "swiglu_mlp": True},
    ),
    "axial of a reference grid": (
        "naflexvit_base_patch16_gap",
        {"rope_type": "axial", "rope_ref_feat_shape": (10, 12)},
    ),
    "axial with an offset": (
        "naflexvit_base_patch16_gap",
        {"rope_type": "axial", "rope_grid_offset": 1.0, "class_token": True},
    ),
    "mixed": ("naflexvit_base_patch16_gap", {"rope_type": "mixed"}),
    "mixed, columns first": ("naflexvit_base_patch16_gap", {"rope_type": "mixed", "rope_grid_indexing": "xy"}),
    "separate projections": ("naflexvit_base_patch16_gap", {"attn_type": "rope", "qkv_fused": False}),
    "a norm of the patches": ("naflexvit_base_patch16_gap", {"embed_norm_layer": "layernorm"}),
    "layer scale of the attention alone": (
        "naflexvit_base_patch16_gap",
        {"attn_only_layer_scale": True, "attn_type": "rope", "init_values": 0.1},
    ),
    "grouped-query attention": (
        "naflexvit_base_patch16_gap",
        {"rope_type": "axial", "attn_type": "rope", "qkv_fused": False, "num_kv_heads": 1},
    ),
    "another attention pool": (
        "naflexvit_base_patch16_map",
        {"attn_pool_num_heads": 4, "attn_pool_mlp_ratio": 2.0},
    ),
    "augmented in training": (
        "naflexvit_base_patch16_gap",
        {"rope_type": "dinov3", "rope_jitter_coords": 2.0, "rope_rotate_half": True},
    ),
    "a norm inside the MLP": ("naflexvit_base_patch16_gap", {"scale_mlp_norm": True}),
    "classic ViT": ("vit_base_patch16_224", {"use_naflex": True}),
    "classic DINOv3": ("vit_small_patch16_dinov3_qkvb", {"use_naflex": True}),
}
NAFLEX_SMALL = {"depth": 2, "embed_dim": 32, "num_heads": 2, "num_classes": 5}


def naflex_peer(name: str, **changes) -> nn.Module:
    """A timm model of this architecture for images of any size, but small."""
    torch.manual_seed(0)
    return _random(timm.create_model(name, **{**NAFLEX_SMALL, **changes}))


def _random(model: nn.Module) -> nn.Module:
    """The model with other weights: zeros and tiny positions would hide mistakes."""
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            parameter.add_(torch.randn_like(parameter) * (1.0 if "pos_embed" in key else 0.2))
    return model.eval()


HF_SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 32, "patch_size": 8}
HF_MLP = {"intermediate_size": 48}
HF_BEIT = {"use_absolute_position_embeddings": True, "use_mask_token": True, "num_labels": 5}
HF = {
    "ViTModel": ("ViTConfig", HF_MLP),
    "ViTForImageClassification": ("ViTConfig", HF_MLP | {"num_labels": 5, "qkv_bias": False}),
    "ViTMAEModel": ("ViTMAEConfig", HF_MLP | {"mask_ratio": 0.0}),
    "ViTMAEForPreTraining": ("ViTMAEConfig", HF_MLP | {"mask_ratio": 0.0}),
    "DeiTModel": ("DeiTConfig", HF_MLP),
    "DeiTForImageClassification": ("DeiTConfig", HF_MLP | {"num_labels": 5}),
    "DeiTForImageClassificationWithTeacher": ("DeiTConfig", HF_MLP | {"num_labels": 5}),
    "IJepaModel": ("IJepaConfig", HF_MLP),
    "IJepaForImageClassification": ("IJepaConfig", HF_MLP | {"num_labels": 5}),
    "BeitModel": ("BeitConfig", HF_MLP | {"use_relative_position_bias": True, "layer_scale_init_value": 0.0}),
    "BeitForImageClassification": (
        "BeitConfig",
        HF_MLP | HF_BEIT | {"use_shared_relative_position_bias": True, "use_mean_pooling": False},
    ),
    "Data2VecVisionModel": ("Data2VecVisionConfig", HF_MLP | HF_BEIT),
    "Data2VecVisionForImageClassification": (
        "Data2VecVisionConfig",
        HF_MLP | {"use_relative_position_bias": True, "num_labels": 5},
    ),
    "Dinov2Model": ("Dinov2Config", {"mlp_ratio": 2}),
    "Dinov2ForImageClassification": ("Dinov2Config", {"mlp_ratio": 2, "use_swiglu_ffn": True, "num_labels": 5}),
    "Dinov2WithRegistersModel": ("Dinov2WithRegistersConfig", {"mlp_ratio": 2, "num_register_tokens": 3}),
    "Dinov2WithRegistersForImageClassification": (
        "Dinov2WithRegistersConfig",
        {"mlp_ratio": 4, "use_swiglu_ffn": True, "num_labels": 5},
    ),
    "DINOv3ViTModel": ("DINOv3ViTConfig", HF_MLP | {"num_register_tokens": 2}),
    "DINOv3ViTModel, gated": (
        "DINOv3ViTConfig",
        HF_MLP | {"use_gated_mlp": True, "hidden_act": "silu", "key_bias": True, "mlp_bias": False, "proj_bias": False},
    ),
    "CLIPVisionModel": ("CLIPVisionConfig", HF_MLP),
    "CLIPVisionModelWithProjection": ("CLIPVisionConfig", HF_MLP | {"projection_dim": 12}),
    "CLIPForImageClassification": ("CLIPConfig", HF_MLP | {"num_labels": 5}),
    "CLIPModel": ("CLIPConfig", HF_MLP),
    "SiglipVisionModel": ("SiglipVisionConfig", HF_MLP),
    "SiglipVisionModel, without a head": ("SiglipVisionConfig", HF_MLP | {"vision_use_head": False}),
    "SiglipForImageClassification": ("SiglipConfig", HF_MLP | {"num_labels": 5}),
    "SiglipModel": ("SiglipConfig", HF_MLP),
    "Aimv2VisionModel": ("Aimv2VisionConfig", HF_MLP | {"use_head": False}),
    "Aimv2VisionModel, with biases": (
        "Aimv2VisionConfig",
        HF_MLP | {"use_head": False, "qkv_bias": True, "mlp_bias": True},
    ),
}
NATIVE = {
    "Siglip2VisionModel": ("Siglip2VisionConfig", HF_MLP),
    "Siglip2VisionModel, without a head": ("Siglip2VisionConfig", HF_MLP | {"vision_use_head": False}),
    "Siglip2ForImageClassification": ("Siglip2Config", HF_MLP | {"num_labels": 5}),
    "Siglip2Model": ("Siglip2Config", HF_MLP),
}
"""For images of any size."""
HF_FAMILIES = {
    "ViT": "ViTForImageClassification",
    "ViT-MAE": "ViTMAEModel",
    "DeiT": "DeiTForImageClassificationWithTeacher",
    "I-JEPA": "IJepaForImageClassification",
    "BEiT": "BeitForImageClassification",
    "data2vec-vision": "Data2VecVisionForImageClassification",
    "DINOv2": "Dinov2ForImageClassification",
    "DINOv2 with registers": "Dinov2WithRegistersForImageClassification",
    "DINOv3": "DINOv3ViTModel",
    "CLIP": "CLIPVisionModelWithProjection",
    "SigLIP": "SiglipVisionModel",
    "SigLIP 2 NaFlex": "Siglip2VisionModel",
    "AIMv2": "Aimv2VisionModel",
}
HF_TEXT = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "vocab_size": 50,
}


def hf_peer(case: str) -> torch.nn.Module:
    """A model of transformers, every weight of it at random."""
    name, (config_name, own) = case.partition(",")[0], {**HF, **NATIVE}[case]
    shape = {**HF_SMALL, "num_patches": 16} if case in NATIVE else HF_SMALL
    make, own = getattr(transformers, config_name), dict(own)
    if config_name in ("CLIPConfig", "SiglipConfig", "Siglip2Config"):
        labels = {key: own.pop(key) for key in ("num_labels",) if key in own}
        config = make(vision_config=shape | own, text_config=HF_TEXT, projection_dim=12, **labels)
    else:
        config = make(**shape, **own)
    torch.manual_seed(0)
    module = getattr(transformers, name)(config).eval()
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return module


PEERS: dict[str, Callable[[], nn.Module]] = {
    "SigLIP 2 NaFlex (timm)": partial(naflex_peer, NAFLEX["siglip"][0]),
    "C-RADIOv4 NaFlex (timm)": partial(naflex_peer, NAFLEX["C-RADIOv4"][0], **NAFLEX["C-RADIOv4"][1]),
    **{f"{family} (timm)": partial(timm_peer, family) for family in TIMM},
    **{f"{family} (transformers)": partial(hf_peer, case) for family, case in HF_FAMILIES.items()},
}
