"""The names of weights in ViTs of transformers: key maps to our names."""

from torch import Tensor

from core import Move
from core.checkpoints.keys import KeyMap

from .merging import mean_head

LAYER = "encoder.blocks.{i}"


def _rows(t: Tensor) -> Tensor:
    """Tables of transformers have a leading axis of 1."""
    return t[0]


def _with_position(token: Tensor, positions: Tensor) -> Tensor:
    return token + positions[:, :1]


def _without_first(positions: Tensor) -> Tensor:
    return positions[0, 1:]


def _as_row(token: Tensor) -> Tensor:
    return token[None, None]


def _queries(table: Tensor) -> Tensor:
    return table[: len(table) // 3]


def _keys_and_values(table: Tensor) -> Tensor:
    return table[len(table) // 3 :]


def _attention(layer: str, *names: str) -> dict[str | tuple[str, ...], str]:
    """Queries, keys, values and the output projection under these names."""
    *three, out = (f"{layer}.{name}.{{p}}" for name in names)
    return {tuple(three): f"{LAYER}.attention.qkv.{{p}}", out: f"{LAYER}.attention.out.{{p}}"}


def layer_keys(layer: str) -> dict[str | tuple[str, ...], str]:
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
    **layer_keys("encoder.layer.{i}"),
    **layer_keys("layers.{i}"),
    "layernorm.{p}": "encoder.final_norm.{p}",
    "classifier.{p}": "head.{p}",
    ("cls_classifier.{p}", "distillation_classifier.{p}"): Move("head.{p}", mean_head),
}


# --- BEiT and data2vec-vision -----------------------------------------------------------------------------------------

TABLE = "relative_position_bias_table"
BEIT: KeyMap = {
    "embeddings.cls_token": Move("embed.class_token"),
    "embeddings.position_embeddings": Move("embed.positions.weight", _rows),
    "embeddings.patch_embeddings.projection.{p}": "embed.projection.{p}",
    "embeddings.mask_token": None,
    **{
        source: target
        for layer in ("encoder.layer.{i}", "layers.{i}")
        for source, target in {
            **layer_keys(layer),
            f"{layer}.lambda_1": f"{LAYER}.attention_branch.scale",
            f"{layer}.lambda_2": f"{LAYER}.mlp_branch.scale",
            f"{layer}.relative_position_bias.{TABLE}": f"{LAYER}.relative_bias.weight",
            f"{layer}.attention.attention.relative_position_bias.{TABLE}": f"{LAYER}.relative_bias.weight",
        }.items()
    },
    f"encoder.relative_position_bias.{TABLE}": "encoder.relative_bias.weight",
    f"shared_position_bias.{TABLE}": "encoder.relative_bias.weight",
    "pooler.layernorm.{p}": "head_norm.{p}",
    "layernorm.{p}": "encoder.final_norm.{p}",
    "classifier.{p}": "head.{p}",
}

# --- DINOv2, with and without registers -------------------------------------------------------------------------------

DINOV2: KeyMap = {
    "embeddings.cls_token": Move("embed.class_token"),
    "embeddings.position_embeddings": Move("embed.positions.weight", _rows),
    "embeddings.patch_embeddings.projection.{p}": "embed.projection.{p}",
    "embeddings.mask_token": None,
    **layer_keys("encoder.layer.{i}"),
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


# --- DINOv3 -----------------------------------------------------------------------------------------------------------


def dinov3_keys(gated: bool) -> KeyMap:
    return {
        "embeddings.cls_token": Move("embed.class_token"),
        "embeddings.register_tokens": Move("embed.registers"),
        "embeddings.mask_token": None,
        "embeddings.patch_embeddings.{p}": "embed.projection.{p}",
        **{
            source: target
            for layer in ("layer.{i}", "model.layer.{i}")
            for source, target in {**layer_keys(layer), **_gated(layer, gated)}.items()
        },
        "norm.{p}": "encoder.final_norm.{p}",
    }


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


def siglip2_keys(patch: int, channels: int) -> KeyMap:
    """Its projection is of flattened patches, by row, column and channel."""

    def as_kernel(weight: Tensor) -> Tensor:
        return weight.unflatten(1, (patch, patch, channels)).movedim(3, 1).contiguous()

    return {
        **{source: target for source, target in SIGLIP.items() if source != "embeddings.patch_embedding.{p}"},
        "embeddings.patch_embedding.weight": Move("embed.projection.weight", as_kernel),
        "embeddings.patch_embedding.bias": "embed.projection.bias",
    }


# --- AIMv2 ------------------------------------------------------------------------------------------------------------

AIMV2: KeyMap = {
    "embeddings.patch_embed.{p}": "embed.projection.{p}",
    "embeddings.rms_norm.{p}": "embed.norm.{p}",
    "embeddings.position_embedding.weight": "embed.positions.weight",
    "embeddings.position_ids": None,
    **_attention("encoder.layers.{i}.attention", "q_proj", "k_proj", "v_proj", "out_proj"),
    "encoder.layers.{i}.rms_norm1.{p}": f"{LAYER}.attention_norm.{{p}}",
    "encoder.layers.{i}.rms_norm2.{p}": f"{LAYER}.mlp_norm.{{p}}",
    ("encoder.layers.{i}.ffn.gate_proj.{p}", "encoder.layers.{i}.ffn.up_proj.{p}"): f"{LAYER}.mlp.up.{{p}}",
    "encoder.layers.{i}.ffn.down_proj.{p}": f"{LAYER}.mlp.down.{{p}}",
    "rms_norm.{p}": "encoder.final_norm.{p}",
}
