"""Stock families of ViTs of transformers: key maps and configs. A new family is added here."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from core import EncoderConfig, Move, Pair, Pool, PositionResize, UserError
from core.checkpoints.keys import KeyMap
from core.encoder.config import Activation

from .model import ViTConfig

Head = Literal["none", "classes", "two classifiers", "projection"]

LAYER = "encoder.blocks.{i}"


def _rows(t: Tensor) -> Tensor:
    """Tables of transformers have a leading axis of 1."""
    return t[0]


def _with_position(token: Tensor, positions: Tensor) -> Tensor:
    return token + positions[:, :1]


def _without_first(positions: Tensor) -> Tensor:
    return positions[0, 1:]


def _mean_head(first: Tensor, second: Tensor) -> Tensor:
    """The mean of two classifiers, as one of the two tokens side by side."""
    return torch.cat([first, second], dim=1) / 2 if first.ndim == 2 else (first + second) / 2


def _as_row(token: Tensor) -> Tensor:
    return token[None, None]


def _queries(table: Tensor) -> Tensor:
    return table[: len(table) // 3]


def _keys_and_values(table: Tensor) -> Tensor:
    return table[len(table) // 3 :]


def _attention(layer: str, *names: str) -> KeyMap:
    """Queries, keys, values and the output projection under these names."""
    *three, out = (f"{layer}.{name}.{{p}}" for name in names)
    return {tuple(three): f"{LAYER}.attention.qkv.{{p}}", out: f"{LAYER}.attention.out.{{p}}"}


def _layer(layer: str) -> KeyMap:
    """A layer under the names of transformers to 5.9, which checkpoints have, and from then on."""
    old = (
        "attention.attention.query",
        "attention.attention.key",
        "attention.attention.value",
        "attention.output.dense",
    )
    new = ("attention.q_proj", "attention.k_proj", "attention.v_proj", "attention.o_proj")
    return {
        **_attention(layer, *old),
        **_attention(layer, *new),
        f"{layer}.layernorm_before.{{p}}": f"{LAYER}.attention_norm.{{p}}",
        f"{layer}.layernorm_after.{{p}}": f"{LAYER}.mlp_norm.{{p}}",
        f"{layer}.norm1.{{p}}": f"{LAYER}.attention_norm.{{p}}",
        f"{layer}.norm2.{{p}}": f"{LAYER}.mlp_norm.{{p}}",
        f"{layer}.layer_scale1.lambda1": f"{LAYER}.attention_branch.scale",
        f"{layer}.layer_scale2.lambda1": f"{LAYER}.mlp_branch.scale",
        f"{layer}.intermediate.dense.{{p}}": f"{LAYER}.mlp.up.{{p}}",
        f"{layer}.output.dense.{{p}}": f"{LAYER}.mlp.down.{{p}}",
        f"{layer}.mlp.fc1.{{p}}": f"{LAYER}.mlp.up.{{p}}",
        f"{layer}.mlp.fc2.{{p}}": f"{LAYER}.mlp.down.{{p}}",
        f"{layer}.mlp.weights_in.{{p}}": f"{LAYER}.mlp.up.{{p}}",
        f"{layer}.mlp.weights_out.{{p}}": f"{LAYER}.mlp.down.{{p}}",
    }


def _gated(layer: str, gated: bool) -> KeyMap:
    """The MLP of DINOv3, and of DINOv2 from transformers 5.10 on."""
    up = (f"{layer}.mlp.gate_proj.{{p}}", f"{layer}.mlp.up_proj.{{p}}") if gated else f"{layer}.mlp.up_proj.{{p}}"
    return {up: f"{LAYER}.mlp.up.{{p}}", f"{layer}.mlp.down_proj.{{p}}": f"{LAYER}.mlp.down.{{p}}"}


# --- ViT, DeiT, I-JEPA and the encoder of ViT-MAE ---------------------------------------------------------------------

VIT: KeyMap = {
    "embeddings.cls_token": Move("embed.class_token"),
    "embeddings.distillation_token": Move("embed.registers"),
    "embeddings.position_embeddings": Move("embed.positions.weight", _rows),
    "embeddings.patch_embeddings.projection.{p}": "embed.projection.{p}",
    "embeddings.mask_token": None,
    **_layer("encoder.layer.{i}"),
    **_layer("layers.{i}"),
    "layernorm.{p}": "encoder.final_norm.{p}",
    "classifier.{p}": "head.{p}",
    ("cls_classifier.{p}", "distillation_classifier.{p}"): Move("head.{p}", _mean_head),
}


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


# --- DINOv2, with and without registers -------------------------------------------------------------------------------

DINOV2: KeyMap = {
    "embeddings.cls_token": Move("embed.class_token"),
    "embeddings.position_embeddings": Move("embed.positions.weight", _rows),
    "embeddings.patch_embeddings.projection.{p}": "embed.projection.{p}",
    "embeddings.mask_token": None,
    **_layer("encoder.layer.{i}"),
    **_gated("encoder.layer.{i}", gated=True),
    "layernorm.{p}": "encoder.final_norm.{p}",
    "classifier.{p}": "head.{p}",
}
# Registers have no positions: that of the class token is added to it once and for all.
DINOV2_WITH_REGISTERS: KeyMap = {
    **{source: target for source, target in DINOV2.items() if source != "embeddings.cls_token"},
    ("embeddings.cls_token", "embeddings.position_embeddings"): Move("embed.class_token", _with_position),
    "embeddings.position_embeddings": Move("embed.positions.weight", _without_first),
    "embeddings.register_tokens": Move("embed.registers"),
}


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
            activation="swiglu" if stock.use_swiglu_ffn else _activation(stock.hidden_act),
            layer_scale=1e-5,
            dropout=float(stock.hidden_dropout_prob),
            attention_dropout=float(stock.attention_probs_dropout_prob),
            drop_path=float(stock.drop_path_rate),
        ),
    )


# --- DINOv3 -----------------------------------------------------------------------------------------------------------


def _dinov3_keys(gated: bool) -> KeyMap:
    return {
        "embeddings.cls_token": Move("embed.class_token"),
        "embeddings.register_tokens": Move("embed.registers"),
        "embeddings.mask_token": None,
        "embeddings.patch_embeddings.{p}": "embed.projection.{p}",
        **{
            source: target
            for layer in ("layer.{i}", "model.layer.{i}")
            for source, target in (_layer(layer) | _gated(layer, gated)).items()
        },
        "norm.{p}": "encoder.final_norm.{p}",
        "classifier.{p}": "head.{p}",
    }


def _dinov3(stock: Any, head: Head) -> ViTConfig:
    gated = stock.use_gated_mlp
    check_supported(not gated or stock.hidden_act == "silu", f"a gated MLP with activation {stock.hidden_act!r}")
    biases = (stock.query_bias, stock.value_bias)
    check_supported(biases[0] == biases[1] and (biases[0] or not stock.key_bias), "a bias of keys or queries alone")
    return ViTConfig(
        **_sizes(stock),
        registers=stock.num_register_tokens,
        positions="none",
        pool="cls_mean" if head == "classes" else "cls",
        encoder=_encoder(
            stock,
            mlp_dim=stock.intermediate_size,
            qkv_bias=stock.query_bias,
            out_bias=stock.proj_bias,
            mlp_bias=stock.mlp_bias,
            activation="swiglu" if gated else _activation(stock.hidden_act),
            layer_scale=1e-5,
            rotary="2d",
            rotary_theta=float(getattr(stock, "rope_theta", None) or stock.rope_parameters["rope_theta"]),
            rotary_unit=True,
            attention_dropout=float(stock.attention_dropout),
            drop_path=float(stock.drop_path_rate),
        ),
    )


# --- The vision towers of CLIP and SigLIP -----------------------------------------------------------------------------

TOWER: KeyMap = {
    "embeddings.class_embedding": Move("embed.class_token", _as_row),
    "embeddings.patch_embedding.{p}": "embed.projection.{p}",
    "embeddings.position_embedding.weight": "embed.positions.weight",
    "embeddings.position_ids": None,
    "pre_layrnorm.{p}": "encoder.input_norm.{p}",
    **_attention("encoder.layers.{i}.self_attn", "q_proj", "k_proj", "v_proj", "out_proj"),
    "encoder.layers.{i}.layer_norm1.{p}": f"{LAYER}.attention_norm.{{p}}",
    "encoder.layers.{i}.layer_norm2.{p}": f"{LAYER}.mlp_norm.{{p}}",
    "encoder.layers.{i}.mlp.fc1.{p}": f"{LAYER}.mlp.up.{{p}}",
    "encoder.layers.{i}.mlp.fc2.{p}": f"{LAYER}.mlp.down.{{p}}",
    "classifier.{p}": "head.{p}",
}
CLIP: KeyMap = {**TOWER, "post_layernorm.{p}": "head_norm.{p}", "visual_projection.weight": "head.weight"}
SIGLIP: KeyMap = {
    **TOWER,
    "post_layernorm.{p}": "encoder.final_norm.{p}",
    "head.probe": "attention_pool.query",
    "head.attention.in_proj_weight": Move("attention_pool.attention.q.weight", _queries),
    "head.attention.in_proj_bias": Move("attention_pool.attention.q.bias", _queries),
    ("head.attention.in_proj_weight",): Move("attention_pool.attention.kv.weight", _keys_and_values),
    ("head.attention.in_proj_bias",): Move("attention_pool.attention.kv.bias", _keys_and_values),
    "head.attention.out_proj.{p}": "attention_pool.attention.out.{p}",
    "head.layernorm.{p}": "attention_pool.norm.{p}",
    "head.mlp.fc1.{p}": "attention_pool.mlp.up.{p}",
    "head.mlp.fc2.{p}": "attention_pool.mlp.down.{p}",
}


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


# --- What they share --------------------------------------------------------------------------------------------------

ACTIVATIONS: dict[str, Activation] = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "relu": "relu",
}


def check_supported(supported: bool, what: str) -> None:
    if not supported:
        raise UserError(f"from_hf does not support {what}.")


def _activation(name: str) -> Activation:
    check_supported(name in ACTIVATIONS, f"activation {name!r}")
    return ACTIVATIONS[name]


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
            "norm_eps": stock.layer_norm_eps,
            **own,
            "activation": own.get("activation") or _activation(stock.hidden_act),
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


FAMILIES = (
    Family(("vit", "vit_mae"), _vit, lambda stock: VIT, "vit.", "ViTImageProcessor"),
    Family(("ijepa",), _vit, lambda stock: VIT, "ijepa.", "ViTImageProcessor"),
    Family(("deit",), _vit, lambda stock: VIT, "deit.", "DeiTImageProcessor"),
    Family(("dinov2",), _dinov2, lambda stock: DINOV2, "dinov2.", "BitImageProcessor"),
    Family(
        ("dinov2_with_registers",),
        _dinov2,
        lambda stock: DINOV2_WITH_REGISTERS,
        "dinov2_with_registers.",
        "BitImageProcessor",
    ),
    Family(
        ("dinov3_vit",),
        _dinov3,
        lambda stock: _dinov3_keys(stock.use_gated_mlp),
        "dinov3_vit.",
        "DINOv3ViTImageProcessor",
    ),
    Family(("clip_vision_model", "clip"), _clip, lambda stock: CLIP, "vision_model.", "CLIPImageProcessor"),
    Family(("siglip_vision_model", "siglip"), _siglip, lambda stock: SIGLIP, "vision_model.", "SiglipImageProcessor"),
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
