"""Stock families of ViTs of transformers and their configs. A new family is added here."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from core import EncoderConfig, Pair, Pool, PositionResize, UserError, pair, patch_grid
from core.checkpoints.keys import KeyMap
from core.models.stock import activation_of, check_supported

from .hf_keys import AIMV2, BEIT, CLIP, DINOV2, DINOV2_WITH_REGISTERS, SIGLIP, VIT, dinov3_keys, siglip2_keys
from .model import ViTConfig

Head = Literal["none", "classes", "two classifiers", "projection"]

# --- ViT, DeiT, I-JEPA and the encoder of ViT-MAE ---------------------------------------------------------------------


def _vit(stock: Any, head: Head) -> ViTConfig:
    kind = stock.model_type
    return ViTConfig(
        **_sizes(stock),
        class_token=kind != "ijepa",
        registers=int(kind == "deit"),
        pool="each_prefix" if head == "two classifiers" else "mean" if kind == "ijepa" else "cls",
        position_resize=PositionResize(antialias=False),
        encoder=_encoder(
            stock,
            mlp_dim=stock.intermediate_size,
            qkv_bias=stock.qkv_bias,
            dropout=float(stock.hidden_dropout_prob),
            attention_dropout=float(stock.attention_probs_dropout_prob),
        ),
        dropout=float(stock.hidden_dropout_prob),
    )


# --- BEiT and data2vec-vision -----------------------------------------------------------------------------------------


def _beit(stock: Any, head: Head) -> ViTConfig:
    own, shared = stock.use_relative_position_bias, stock.use_shared_relative_position_bias
    check_supported(not (own and shared), "relative positions both of a layer and of all layers")
    grid = patch_grid(_side(stock.image_size), _side(stock.patch_size))
    # transformers (5.24) reads the table of another shape by columns, and models are trained with that.
    check_supported(grid[0] == grid[1] or not (own or shared), "relative positions of images that are not square")
    return ViTConfig(
        **_sizes(stock),
        positions="learned" if stock.use_absolute_position_embeddings else "none",
        position_resize=PositionResize(antialias=False),
        pool="mean" if stock.use_mean_pooling else "cls",
        head_norm=stock.use_mean_pooling,
        encoder=_encoder(
            stock,
            mlp_dim=stock.intermediate_size,
            final_norm=not stock.use_mean_pooling,
            layer_scale=stock.layer_scale_init_value or None,
            relative_bias=grid if own or shared else None,
            relative_bias_shared=shared,
            dropout=float(stock.hidden_dropout_prob),
            attention_dropout=float(stock.attention_probs_dropout_prob),
            drop_path=float(stock.drop_path_rate),
        ),
    )


# --- DINOv2, with and without registers -------------------------------------------------------------------------------


def _dinov2(stock: Any, head: Head) -> ViTConfig:
    hidden, registers = int(stock.hidden_size * stock.mlp_ratio), getattr(stock, "num_register_tokens", 0)
    if stock.use_swiglu_ffn:
        hidden = (int(hidden * 2 / 3) + 7) // 8 * 8
    return ViTConfig(
        **_sizes(stock),
        registers=registers,
        prefix_positions=not registers,
        pool="cls_mean" if head == "classes" else "cls",
        position_resize=PositionResize(antialias=registers > 0),
        encoder=_encoder(
            stock,
            mlp_dim=hidden,
            qkv_bias=stock.qkv_bias,
            activation="swiglu" if stock.use_swiglu_ffn else activation_of(stock.hidden_act),
            layer_scale=1e-5,
            dropout=float(stock.hidden_dropout_prob),
            attention_dropout=float(stock.attention_probs_dropout_prob),
            drop_path=float(stock.drop_path_rate),
        ),
    )


# --- DINOv3 -----------------------------------------------------------------------------------------------------------


def _dinov3(stock: Any, head: Head) -> ViTConfig:
    check_supported(head == "none", "a classifier of DINOv3")
    gated = stock.use_gated_mlp
    check_supported(not gated or stock.hidden_act == "silu", f"a gated MLP with activation {stock.hidden_act!r}")
    biases = (stock.query_bias, stock.value_bias)
    check_supported(biases[0] == biases[1] and (biases[0] or not stock.key_bias), "a bias of keys or queries alone")
    return ViTConfig(
        **_sizes(stock),
        registers=stock.num_register_tokens,
        positions="none",
        encoder=_encoder(
            stock,
            mlp_dim=stock.intermediate_size,
            qkv_bias=stock.query_bias,
            out_bias=stock.proj_bias,
            mlp_bias=stock.mlp_bias,
            activation="swiglu" if gated else activation_of(stock.hidden_act),
            layer_scale=1e-5,
            rotary="2d",
            rotary_theta=float(getattr(stock, "rope_theta", None) or stock.rope_parameters["rope_theta"]),
            rotary_unit=True,
            attention_dropout=float(stock.attention_dropout),
            drop_path=float(stock.drop_path_rate),
        ),
    )


# --- The vision towers of CLIP and SigLIP -----------------------------------------------------------------------------


def _clip(stock: Any, head: Head) -> ViTConfig:
    return ViTConfig(
        **_sizes(stock),
        pool="mean" if head == "classes" else "cls",
        head_norm=head != "classes",  # as in transformers, whose classifier takes the mean of patches as they are
        position_resize=PositionResize(antialias=False),
        patch_bias=False,
        encoder=_encoder(
            stock,
            mlp_dim=stock.intermediate_size,
            input_norm=True,
            final_norm=False,
            attention_dropout=float(stock.attention_dropout),
        ),
    )


def _siglip(stock: Any, head: Head) -> ViTConfig:
    pool: Pool = "mean" if head == "classes" or not stock.vision_use_head else "attention"
    return ViTConfig(
        **_sizes(stock),
        class_token=False,
        pool=pool,
        position_resize=PositionResize(antialias=False),
        encoder=_encoder(stock, mlp_dim=stock.intermediate_size, attention_dropout=float(stock.attention_dropout)),
    )


def _siglip2(stock: Any, head: Head) -> ViTConfig:
    """SigLIP 2 NaFlex: images of any size, up to as many patches as there are positions, which keep their grid."""
    side, patch = math.isqrt(stock.num_patches), _side(stock.patch_size)
    check_supported(isinstance(patch, int) and side**2 == stock.num_patches, "positions of a grid that is not square")
    return ViTConfig(
        image_size=side * pair(patch)[0],
        patch_size=patch,
        channels=stock.num_channels,
        max_tokens=stock.num_patches,
        class_token=False,
        pool="mean" if head == "classes" or not stock.vision_use_head else "attention",
        position_grid=(side, side),
        position_resize=PositionResize(mode="bilinear"),
        encoder=_encoder(stock, mlp_dim=stock.intermediate_size, attention_dropout=float(stock.attention_dropout)),
    )


# --- AIMv2 ------------------------------------------------------------------------------------------------------------


def _aimv2(stock: Any, head: Head) -> ViTConfig:
    check_supported(not stock.use_head, "a head of AIMv2 (use_head)")
    check_supported(not stock.is_native, "AIMv2 for images of native size (is_native)")
    check_supported(stock.hidden_act == "silu", f"a gated MLP with activation {stock.hidden_act!r}")
    return ViTConfig(
        **_sizes(stock),
        class_token=False,
        pool="mean",
        patch_norm=True,
        encoder=_encoder(
            stock,
            mlp_dim=stock.intermediate_size,
            activation="swiglu",
            norm="rmsnorm",
            norm_eps=stock.rms_norm_eps,
            qkv_bias=stock.qkv_bias,
            out_bias=stock.qkv_bias,
            mlp_bias=stock.mlp_bias,
            attention_dropout=float(stock.attention_dropout),
        ),
    )


# --- What they share --------------------------------------------------------------------------------------------------


def _side(value: Any) -> Pair:
    if isinstance(value, int):
        return value
    rows, columns = value
    return rows if rows == columns else (rows, columns)


def _sizes(stock: Any) -> dict[str, Any]:
    return {
        "image_size": _side(stock.image_size),
        "patch_size": _side(stock.patch_size),
        "channels": stock.num_channels,
    }


def _encoder(stock: Any, **own: Any) -> EncoderConfig:
    return EncoderConfig(
        **{
            "dim": stock.hidden_size,
            "depth": stock.num_hidden_layers,
            "heads": stock.num_attention_heads,
            "norm_eps": own.get("norm_eps") or stock.layer_norm_eps,
            **own,
            "activation": own.get("activation") or activation_of(stock.hidden_act),
        }
    )


@dataclass(frozen=True)
class Family:
    """Stock models that differ in nothing but their size and their head."""

    types: tuple[str, ...]
    """In config.json (model_type)."""
    read: Callable[[Any, Head], ViTConfig]
    """Our config for that of transformers, and a head."""
    keys: Callable[[Any], KeyMap]
    """For a config of transformers."""
    prefix: str
    """Of the base model's weights in a model with a head."""
    processor: str
    """Name of the class of transformers that prepares images."""
    any_size: bool = False
    """Whether transformers takes images of any size: so it is their processor that says which."""


FAMILIES = (
    Family(("vit", "vit_mae"), _vit, lambda stock: VIT, "vit.", "ViTImageProcessor"),
    Family(("ijepa",), _vit, lambda stock: VIT, "ijepa.", "ViTImageProcessor"),
    Family(("deit",), _vit, lambda stock: VIT, "deit.", "DeiTImageProcessor"),
    Family(("beit",), _beit, lambda stock: BEIT, "beit.", "BeitImageProcessor"),
    Family(("data2vec-vision",), _beit, lambda stock: BEIT, "data2vec_vision.", "BeitImageProcessor"),
    Family(("dinov2",), _dinov2, lambda stock: DINOV2, "dinov2.", "BitImageProcessor", any_size=True),
    Family(
        ("dinov2_with_registers",),
        _dinov2,
        lambda stock: DINOV2_WITH_REGISTERS,
        "dinov2_with_registers.",
        "BitImageProcessor",
        any_size=True,
    ),
    Family(
        ("dinov3_vit",),
        _dinov3,
        lambda stock: dinov3_keys(stock.use_gated_mlp),
        "dinov3_vit.",
        "DINOv3ViTImageProcessor",
        any_size=True,
    ),
    Family(("clip_vision_model", "clip"), _clip, lambda stock: CLIP, "vision_model.", "CLIPImageProcessor"),
    Family(("siglip_vision_model", "siglip"), _siglip, lambda stock: SIGLIP, "vision_model.", "SiglipImageProcessor"),
    Family(
        ("siglip2_vision_model", "siglip2"),
        _siglip2,
        lambda stock: siglip2_keys(stock.patch_size, stock.num_channels),
        "vision_model.",
        "Siglip2ImageProcessor",
    ),
    Family(("aimv2_vision_model",), _aimv2, lambda stock: AIMV2, "vision_model.", "CLIPImageProcessor"),
)
HEADS: dict[str, Head] = {
    "Model": "none",
    "VisionModel": "none",
    "ForMaskedImageModeling": "none",
    "ForPreTraining": "none",
    "ForImageClassification": "classes",
    "ForImageClassificationWithTeacher": "two classifiers",
    "VisionModelWithProjection": "projection",
}


def find_family(stock: Any, kind: str) -> tuple[Family, Head]:
    """The family and the head of a class of transformers; the base model of the config's type if no class is named."""
    given = getattr(stock, "model_type", None)
    family = next((family for family in FAMILIES if given in family.types), None)
    ends = [end for end in HEADS if kind.endswith(end)]
    if family is None or (kind and not ends):
        types = ", ".join(name for family in FAMILIES for name in family.types)
        shown = f"{kind} ({given})" if kind else f"a model of type {given!r}"
        raise UserError(f"from_hf takes ViTs of transformers of type {types}, not {shown}.")
    if not kind:
        return family, "none"
    head = HEADS[max(ends, key=len)]
    # CLIP's whole model has a projection for images; SigLIP's has none.
    return family, "projection" if given == "clip" and kind == "CLIPModel" else head


def stock_processor(stock: Any, kind: str) -> Any:
    """What prepares images for a family's stock models."""
    import transformers

    name = find_family(stock, kind)[0].processor
    return (getattr(transformers, name, None) or getattr(transformers, f"{name}Fast"))()
