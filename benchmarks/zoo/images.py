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

from core.testing import ModelSubject, Positions
from vision import ViT, ViTConfig
from vision.resizing import changed, resize

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
    flex_hidden,
    flex_pooled,
    flex_ways,
    hidden,
    interpolating,
    logits,
    pooled,
    size_option,
)

SIZES = {"image_size": 16, "patch_size": 8, **SHAPE}
PLAIN = {**SIZES, **NO_DROPOUT}
TIMM = {"img_size": 16, "patch_size": 8, "embed_dim": DIM, "depth": 2, "num_heads": HEADS, "num_classes": CLASSES}
PATCHES = torch.linspace(-2, 2, 2 * 4 * 192).sin().reshape(2, 4, 192)
PLACES = torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1]]).expand(2, -1, -1)
GRID = (2, 2)
CLIP_TABLE = "embeddings.position_embedding.weight"
REAL = torch.tensor([[True] * 4, [True, True, False, False]])


def made(family: str, kind: str = "Model", options: dict[str, Any] | None = None, **config: Any) -> nn.Module:
    """A small model of transformers."""
    return getattr(transformers, family + kind)(getattr(transformers, f"{family}Config")(**config), **(options or {}))


def of_transformers(
    family: str,
    call: Callable = pooled,
    expected: Mapping[str, str] | None = None,
    table: str = "embeddings.position_embeddings",
    resize: Callable = interpolating,
    **config: Any,
) -> ModelSubject:
    """table: the name of the positions; none, if it is empty."""
    options = {"add_pooling_layer": False} if family == "ViT" else {}
    return ModelSubject(
        partial(made, family, options=options, **config),
        (IMAGES,),
        name=f"transformers: {family}Model",
        call=call,
        ways={"attn_implementation='eager'": eager_pooled if call is pooled else eager},
        inference_ways=flex_ways(family, flex_pooled if call is pooled else flex_hidden),
        positions=Positions((table,), GRID, resize) if table else None,
        claims=PROMISED,
        expected_failures=expected or {},
    )


def always_interpolating(module: nn.Module, rows: int, columns: int) -> nn.Module:
    return module


def by_set_input_size(module: nn.Module, rows: int, columns: int) -> nn.Module:
    """timm's."""
    module.set_input_size((8 * rows, 8 * columns))
    return module


def our_resize(module: ViT, rows: int, columns: int) -> ViT:
    """As `vision.from_timm(..., image_size=...)` does it."""
    config = changed(module.config, {"image_size": (8 * rows, 8 * columns)})
    resized = ViT(config).to(next(module.parameters()))
    resized.load_state_dict(resize(module.state_dict(), module.config, config))
    return resized


def mae_options(module: nn.Module, images: Tensor) -> dict[str, Any]:
    """The noise says which patches are masked: those of the highest numbers."""
    patches = images.shape[2] // 8 * (images.shape[3] // 8)
    return {"noise": torch.linspace(0, 40, patches).sin().expand(len(images), -1), **size_option(module)}


def mae_hidden(module: nn.Module, images: Tensor) -> Tensor:
    """The mean over the tokens that are kept."""
    return module(images, **mae_options(module, images)).last_hidden_state.mean(1)


def mae_pixels(module: nn.Module, images: Tensor) -> Tensor:
    """The mean over the patches, and of its numbers the first."""
    return module(images, **mae_options(module, images)).logits.mean(1)[:, :DIM]


def mae_eager(module: nn.Module, images: Tensor) -> Tensor:
    module.set_attn_implementation("eager")
    return mae_hidden(module, images)


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


DINOV2 = {"resize": always_interpolating, **PLAIN, "mlp_ratio": 2, "use_mask_token": False}
MAE = {**PLAIN, "mask_ratio": 0.0}
DECODER = {"decoder_hidden_size": DIM, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": HEADS}
DECODER |= {"decoder_intermediate_size": 2 * DIM}
MAE_TABLES = ("vit.embeddings.position_embeddings", "decoder.decoder_pos_embed")
MAE_POSITIONS = "found here: docs/findings/transformers-mae-positions.md"
UNMASKED = "not promised: nothing is masked here, and the mask token serves what is"
RESIZED = "resized-positions-keep-their-places"
MASKING = {"gradient-reaches-every-parameter": "not promised: the mask token serves pre-training alone"}
DINOV3 = {**SIZES, "num_register_tokens": 2}
OURS_RESIZED = Positions(("embed.positions.weight",), GRID, our_resize)
TIMMS = Positions(("pos_embed",), GRID, by_set_input_size)
IMAGE_MODELS = {
    "ours_vit": image_model(our_vit, "ours: ViT", claims=OURS, positions=OURS_RESIZED),
    "hf_vit": of_transformers("ViT", hidden, **PLAIN),
    "hf_vit_classes": image_model(
        partial(made, "ViT", "ForImageClassification", num_labels=CLASSES, **PLAIN),
        "transformers: ViTForImageClassification",
        call=logits,
    ),
    "hf_deit": of_transformers("DeiT", **PLAIN),
    "hf_beit": of_transformers("Beit", table="", **PLAIN, use_relative_position_bias=True),
    "hf_dinov2": of_transformers("Dinov2", **DINOV2),
    "hf_dinov2_registers": of_transformers("Dinov2WithRegisters", expected=MASKING, **DINOV2),
    "hf_dinov3": of_transformers("DINOv3ViT", expected=MASKING, table="", **DINOV3),
    "hf_clip_vision": of_transformers("CLIPVision", table=CLIP_TABLE, **SIZES),
    "hf_siglip_vision": of_transformers("SiglipVision", table=CLIP_TABLE, **SIZES),
    "hf_siglip2_vision": ModelSubject(
        partial(made, "Siglip2Vision", num_patches=4, patch_size=8, **SHAPE),
        siglip2_batch(),
        name="transformers: Siglip2VisionModel",
        call=siglip2,
        ways={"attn_implementation='eager'": siglip2_eager},
        padded=siglip2_batch(3),
        claims=PROMISED,
    ),
    "hf_mae": image_model(
        partial(made, "ViTMAE", **MAE | {"mask_ratio": 0.5}),
        "transformers: ViTMAEModel",
        call=mae_hidden,
        rate=3e-2,
        ways={"attn_implementation='eager'": mae_eager},
    ),
    "hf_mae_decoder": image_model(
        partial(made, "ViTMAE", "ForPreTraining", **MAE, **DECODER),
        "transformers: ViTMAEForPreTraining",
        call=mae_pixels,
        positions=Positions(MAE_TABLES, GRID, interpolating),
        rate=3e-2,
        expected_failures={RESIZED: MAE_POSITIONS, "gradient-reaches-every-parameter": UNMASKED},
    ),
    "hf_ijepa": of_transformers("IJepa", hidden, **PLAIN),
    "timm_vit": image_model(partial(timm.models.VisionTransformer, **TIMM), "timm: VisionTransformer", positions=TIMMS),
    "timm_vit_avg": image_model(
        partial(timm.models.VisionTransformer, **TIMM, global_pool="avg", class_token=False, reg_tokens=2),
        "timm: VisionTransformer, registers, mean",
        positions=TIMMS,
    ),
    "timm_vit_map": image_model(
        partial(timm.models.VisionTransformer, **TIMM, global_pool="map", class_token=False),
        "timm: VisionTransformer, attention pool",
    ),
    "timm_eva": image_model(timm_eva, "timm: EVA", positions=TIMMS),
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
