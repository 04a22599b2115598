"""The names of weights in sound models of transformers: key maps to our names."""

import torch
from torch import Tensor

from core import Move
from core.checkpoints.keys import KeyMap

LAYER = "encoder.blocks.{i}"


def _rows(t: Tensor) -> Tensor:
    """The table of transformers has a leading axis of 1."""
    return t[0]


def _layer(layer: str) -> KeyMap:
    """A layer under the names of transformers to 5.9, which checkpoints have, and from then on."""
    old, new = f"{layer}.attention.attention", f"{layer}.attention"
    return {
        (f"{old}.query.{{p}}", f"{old}.key.{{p}}", f"{old}.value.{{p}}"): f"{LAYER}.attention.qkv.{{p}}",
        f"{new}.output.dense.{{p}}": f"{LAYER}.attention.out.{{p}}",
        (f"{new}.q_proj.{{p}}", f"{new}.k_proj.{{p}}", f"{new}.v_proj.{{p}}"): f"{LAYER}.attention.qkv.{{p}}",
        f"{new}.o_proj.{{p}}": f"{LAYER}.attention.out.{{p}}",
        f"{layer}.layernorm_before.{{p}}": f"{LAYER}.attention_norm.{{p}}",
        f"{layer}.layernorm_after.{{p}}": f"{LAYER}.mlp_norm.{{p}}",
        f"{layer}.intermediate.dense.{{p}}": f"{LAYER}.mlp.up.{{p}}",
        f"{layer}.output.dense.{{p}}": f"{LAYER}.mlp.down.{{p}}",
        f"{layer}.mlp.fc1.{{p}}": f"{LAYER}.mlp.up.{{p}}",
        f"{layer}.mlp.fc2.{{p}}": f"{LAYER}.mlp.down.{{p}}",
    }


AST: KeyMap = {
    "embeddings.cls_token": Move("embed.patches.class_token"),
    "embeddings.distillation_token": Move("embed.patches.registers"),
    "embeddings.position_embeddings": Move("embed.patches.positions.weight", _rows),
    "embeddings.patch_embeddings.projection.{p}": "embed.patches.projection.{p}",
    **_layer("encoder.layer.{i}"),
    **_layer("layers.{i}"),
    "layernorm.{p}": "encoder.final_norm.{p}",
    "classifier.layernorm.{p}": "head_norm.{p}",
    "classifier.dense.{p}": "head.{p}",
}


# --- Whisper's encoder ------------------------------------------------------------------------------------------------


def _without_key_bias(q: Tensor, v: Tensor) -> Tensor:
    return torch.cat([q, torch.zeros_like(q), v])


def _projected(head: Tensor, projector: Tensor) -> Tensor:
    """A classifier of projections, applied to them or to their bias."""
    return (head.double() @ projector.double()).to(head.dtype)


def _projected_bias(weight: Tensor, projector: Tensor, bias: Tensor) -> Tensor:
    return _projected(weight, projector) + bias


def _whisper(before: str) -> KeyMap:
    layer, attention = f"{before}layers.{{i}}", f"{before}layers.{{i}}.self_attn"
    return {
        f"{before}conv1.{{p}}": "embed.first.{p}",
        f"{before}conv2.{{p}}": "embed.second.{p}",
        f"{before}embed_positions.weight": "embed.positions.weight",
        (f"{attention}.q_proj.weight", f"{attention}.k_proj.weight", f"{attention}.v_proj.weight"): (
            f"{LAYER}.attention.qkv.weight"
        ),
        (f"{attention}.q_proj.bias", f"{attention}.v_proj.bias"): Move(
            f"{LAYER}.attention.qkv.bias", _without_key_bias
        ),
        f"{attention}.out_proj.{{p}}": f"{LAYER}.attention.out.{{p}}",
        f"{layer}.self_attn_layer_norm.{{p}}": f"{LAYER}.attention_norm.{{p}}",
        f"{layer}.final_layer_norm.{{p}}": f"{LAYER}.mlp_norm.{{p}}",
        f"{layer}.fc1.{{p}}": f"{LAYER}.mlp.up.{{p}}",
        f"{layer}.fc2.{{p}}": f"{LAYER}.mlp.down.{{p}}",
        f"{before}layer_norm.{{p}}": "encoder.final_norm.{p}",
    }


WHISPER: KeyMap = {
    **_whisper(""),
    **_whisper("encoder."),
    # The mean of projected tokens is the projected mean, so that both projections are one.
    ("classifier.weight", "projector.weight"): Move("head.weight", _projected),
    ("classifier.weight", "projector.bias", "classifier.bias"): Move("head.bias", _projected_bias),
}
