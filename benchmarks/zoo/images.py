"""Models of images."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import timm
import torch
import torch.nn.functional as F
import transformers
from open_clip.transformer import VisionTransformer
from timm.models.naflexvit import NaFlexVit, NaFlexVitCfg
from torch import Tensor, nn

from core.testing import ModelSubject
from vision import ViT, ViTConfig

from .shapes import (
    CLASSES,
    DIM,
    HEADS,
    IMAGES,
    NO_DROPOUT,
    OURS,
    PROMISED,
    SHAPE,
    TINY,
    eager,
    eager_pooled,
    hidden,
    logits,
    pooled,
)

SIZES = {"image_size": 16, "patch_size": 8, **SHAPE}
PLAIN = {**SIZES, **NO_DROPOUT}
TIMM = {"img_size": 16, "patch_size": 8, "embed_dim": DIM, "depth": 2, "num_heads": HEADS, "num_classes": CLASSES}
PATCHES = torch.linspace(-2, 2, 2 * 4 * 192).sin().reshape(2, 4, 192)
PLACES = torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1]]).expand(2, -1, -1)
REAL = torch.tensor([[True] * 4, [True, True, False, False]])


def made(family: str, kind: str = "Model", options: dict[str, Any] | None = None, **config: Any) -> nn.Module:
    """A small model of transformers."""
    return getattr(transformers, family + kind)(getattr(transformers, f"{family}Config")(**config), **(options or {}))


def of_transformers(
    family: str, call: Callable = pooled, expected: Mapping[str, str] | None = None, **config: Any
) -> ModelSubject:
    options = {"add_pooling_layer": False} if family == "ViT" else {}
    return ModelSubject(
        partial(made, family, options=options, **config),
        (IMAGES,),
        name=f"transformers: {family}Model",
        call=call,
        ways={"attn_implementation='eager'": eager_pooled if call is pooled else eager},
        claims=PROMISED,
        expected_failures=expected or {},
    )


def siglip2_batch(more: int = 0, mask: Tensor = REAL) -> tuple[Tensor, Tensor, Tensor]:
    """Patches, which of them are real, and the rows and columns of each image."""
    shapes = torch.tensor([[2, 2], [1, 2]])
    pixels = PATCHES.where(mask[..., None], 0)
    return F.pad(pixels, (0, 0, 0, more)), F.pad(mask, (0, more)), shapes


def siglip2(module: nn.Module, pixels: Tensor, mask: Tensor, shapes: Tensor) -> Tensor:
    return module(pixels, pixel_attention_mask=mask.int(), spatial_shapes=shapes).pooler_output


def siglip2_eager(module: nn.Module, *inputs: Tensor) -> Tensor:
    module.set_attn_implementation("eager")
    return siglip2(module, *inputs)


def naflex() -> nn.Module:
    config = NaFlexVitCfg(patch_size=8, embed_dim=DIM, depth=2, num_heads=HEADS, class_token=False, global_pool="avg")
    return NaFlexVit(config, num_classes=CLASSES)


def naflex_call(module: nn.Module, patches: Tensor, places: Tensor, real: Tensor) -> Tensor:
    return module({"patches": patches, "patch_coord": places, "patch_valid": real})


def naflex_batches() -> dict[str, Any]:
    clean = PATCHES.where(REAL[..., None], 0)
    more = (F.pad(clean, (0, 0, 0, 3)), F.pad(PLACES, (0, 0, 0, 3)), F.pad(REAL, (0, 3)))
    return {"batch": (clean, PLACES, REAL), "padded": more, "altered": (PATCHES, PLACES, REAL)}


def open_clip_vit(**options: Any) -> nn.Module:
    return VisionTransformer(16, 8, DIM, 2, HEADS, 2.0, output_dim=DIM, **options)


def timm_eva(**options: Any) -> nn.Module:
    return timm.models.Eva(**TIMM, **options)


def our_vit() -> ViT:
    return ViT(ViTConfig(image_size=16, patch_size=8, classes=CLASSES, encoder=TINY))


def image_model(factory: Any, name: str, **options: Any) -> ModelSubject:
    return ModelSubject(factory, (IMAGES,), name=name, **{"claims": PROMISED} | options)


DINOV2 = {**PLAIN, "mlp_ratio": 2, "use_mask_token": False}
MASKING = {"gradient-reaches-every-parameter": "not promised: the mask token serves pre-training alone"}
DINOV3 = {**SIZES, "num_register_tokens": 2}
IMAGE_MODELS = {
    "ours_vit": image_model(our_vit, "ours: ViT", claims=OURS),
    "hf_vit": of_transformers("ViT", hidden, **PLAIN),
    "hf_vit_classes": image_model(
        partial(made, "ViT", "ForImageClassification", num_labels=CLASSES, **PLAIN),
        "transformers: ViTForImageClassification",
        call=logits,
    ),
    "hf_deit": of_transformers("DeiT", **PLAIN),
    "hf_beit": of_transformers("Beit", **PLAIN, use_relative_position_bias=True),
    "hf_dinov2": of_transformers("Dinov2", **DINOV2),
    "hf_dinov2_registers": of_transformers("Dinov2WithRegisters", expected=MASKING, **DINOV2),
    "hf_dinov3": of_transformers("DINOv3ViT", expected=MASKING, **DINOV3),
    "hf_clip_vision": of_transformers("CLIPVision", **SIZES),
    "hf_siglip_vision": of_transformers("SiglipVision", **SIZES),
    "hf_siglip2_vision": ModelSubject(
        partial(made, "Siglip2Vision", num_patches=4, patch_size=8, **SHAPE),
        siglip2_batch(),
        name="transformers: Siglip2VisionModel",
        call=siglip2,
        ways={"attn_implementation='eager'": siglip2_eager},
        padded=siglip2_batch(3),
        claims=PROMISED,
    ),
    "hf_ijepa": of_transformers("IJepa", hidden, **PLAIN),
    "timm_vit": image_model(partial(timm.models.VisionTransformer, **TIMM), "timm: VisionTransformer"),
    "timm_vit_avg": image_model(
        partial(timm.models.VisionTransformer, **TIMM, global_pool="avg", class_token=False, reg_tokens=2),
        "timm: VisionTransformer, registers, mean",
    ),
    "timm_vit_map": image_model(
        partial(timm.models.VisionTransformer, **TIMM, global_pool="map", class_token=False),
        "timm: VisionTransformer, attention pool",
    ),
    "timm_eva": image_model(timm_eva, "timm: EVA"),
    "timm_eva_rope": image_model(
        partial(timm_eva, use_rot_pos_emb=True, swiglu_mlp=True, qkv_fused=False), "timm: EVA-02, rotary"
    ),
    "timm_naflex": ModelSubject(naflex, name="timm: NaFlexVit", call=naflex_call, claims=PROMISED, **naflex_batches()),
    "open_clip_vit": image_model(open_clip_vit, "open_clip: VisionTransformer"),
    "open_clip_pool": image_model(
        partial(open_clip_vit, attentional_pool=True, attn_pooler_queries=4, attn_pooler_heads=HEADS),
        "open_clip: VisionTransformer, attention pool",
    ),
}
