"""Stock families of models of waveforms of transformers: key maps and configs."""

from collections.abc import Mapping
from typing import Any, Literal

from torch import Tensor

from core import EncoderConfig, Move
from core.checkpoints.keys import KeyMap
from core.models.stock import activation_of, check_supported

from .waveform import WaveformConfig

POSITIONS, LAYER = "encoder.pos_conv_embed", "encoder.layers.{i}"


def _weight_norm(gain: Tensor, direction: Tensor) -> Tensor:
    """The weight of a convolution with weight norm, which has a gain for each place of the kernel."""
    return gain * direction / direction.norm(dim=(0, 1), keepdim=True)


def keys(stock: Any) -> KeyMap:
    return {
        "feature_extractor.conv_layers.{i}.conv.{p}": "embed.convolutions.{i}.conv.{p}",
        "feature_extractor.conv_layers.{i}.layer_norm.{p}": "embed.convolutions.{i}.norm.{p}",
        "feature_projection.layer_norm.{p}": "embed.feature_norm.{p}",
        "feature_projection.projection.{p}": "embed.projection.{p}",
        f"{POSITIONS}.conv.bias": "embed.positions.0.bias",
        (
            f"{POSITIONS}.conv.parametrizations.weight.original0",
            f"{POSITIONS}.conv.parametrizations.weight.original1",
        ): Move("embed.positions.0.weight", _weight_norm),
        (f"{POSITIONS}.conv.weight_g", f"{POSITIONS}.conv.weight_v"): Move("embed.positions.0.weight", _weight_norm),
        f"{POSITIONS}.layers.{{i}}.conv.{{p}}": "embed.positions.{i}.{p}",
        "encoder.layer_norm.{p}": "encoder.final_norm.{p}" if _pre_norm(stock) else "embed.norm.{p}",
        (
            f"{LAYER}.attention.q_proj.{{p}}",
            f"{LAYER}.attention.k_proj.{{p}}",
            f"{LAYER}.attention.v_proj.{{p}}",
        ): "encoder.blocks.{i}.attention.qkv.{p}",
        "encoder.layers.0.attention.rel_attn_embed.weight": "encoder.distance_bias.weight",
        f"{LAYER}.attention.gru_rel_pos_const": Move("encoder.blocks.{i}.distance_gate.scale", lambda t: t.flatten()),
        f"{LAYER}.attention.gru_rel_pos_linear.{{p}}": "encoder.blocks.{i}.distance_gate.projection.{p}",
        f"{LAYER}.attention.out_proj.{{p}}": "encoder.blocks.{i}.attention.out.{p}",
        f"{LAYER}.layer_norm.{{p}}": "encoder.blocks.{i}.attention_norm.{p}",
        f"{LAYER}.feed_forward.intermediate_dense.{{p}}": "encoder.blocks.{i}.mlp.up.{p}",
        f"{LAYER}.feed_forward.output_dense.{{p}}": "encoder.blocks.{i}.mlp.down.{p}",
        f"{LAYER}.final_layer_norm.{{p}}": "encoder.blocks.{i}.mlp_norm.{p}",
        "layer_weights": "head_layers.weight",
        "projector.{p}": "head_projection.{p}",
        "classifier.{p}": "head.{p}",
    }


Head = Literal["none", "classes"]


def read(stock: Any, extractor: Any, head: Head) -> WaveformConfig:
    check_supported(not getattr(stock, "add_adapter", False), "the adapter after the encoder (add_adapter)")
    check_supported(getattr(stock, "adapter_attn_dim", None) is None, "adapters of languages (adapter_attn_dim)")
    check_supported(not getattr(stock, "conv_pos_batch_norm", False), "a BatchNorm of positions (conv_pos_batch_norm)")
    check_supported(
        stock.feat_extract_activation == "gelu", f"convolutions with activation {stock.feat_extract_activation}"
    )
    data2vec, wavlm = stock.model_type == "data2vec-audio", stock.model_type == "wavlm"
    classes, pre_norm = head == "classes", _pre_norm(stock)
    return WaveformConfig(
        sample_rate=extractor.sampling_rate,
        normalise=extractor.do_normalize,
        attend_padding=not extractor.return_attention_mask,
        conv_dims=tuple(stock.conv_dim),
        conv_kernels=tuple(stock.conv_kernel),
        conv_strides=tuple(stock.conv_stride),
        conv_bias=stock.conv_bias,
        conv_norm="all" if data2vec or stock.feat_extract_norm == "layer" else "first",
        feature_norm=getattr(stock, "feat_proj_layer_norm", True),
        position_layers=stock.num_conv_pos_embeddings if data2vec else 1,
        position_kernel=stock.conv_pos_kernel_size if data2vec else stock.num_conv_pos_embeddings,
        position_groups=stock.num_conv_pos_embedding_groups,
        position_norm=data2vec,
        embedding_norm=not pre_norm,
        head_layers=classes and stock.use_weighted_layer_sum,
        head_width=stock.classifier_proj_size if classes else 0,
        dropout=float(stock.hidden_dropout),
        encoder=EncoderConfig(
            dim=stock.hidden_size,
            depth=stock.num_hidden_layers,
            heads=stock.num_attention_heads,
            mlp_dim=stock.intermediate_size,
            activation=activation_of(stock.hidden_act),
            norm_order="pre" if pre_norm else "post",
            norm_eps=stock.layer_norm_eps,
            dropout=float(stock.hidden_dropout),
            distance_bias=(stock.num_buckets, stock.max_bucket_distance) if wavlm else None,
            distance_gate=wavlm,
            attention_dropout=float(stock.attention_dropout),
        ),
    )


def _pre_norm(stock: Any) -> bool:
    return getattr(stock, "do_stable_layer_norm", False)


HEADS: Mapping[str, Head] = {
    "Model": "none",
    "ForPreTraining": "none",
    "ForCTC": "none",
    "ForSequenceClassification": "classes",
}
UNUSED = ("masked_spec_embed", "lm_head.", "quantizer.", "project_hid.", "project_q.")
"""What keys of weights begin with that serve pre-training or transcription alone."""
PREFIXES = {
    "wav2vec2": "wav2vec2.",
    "hubert": "hubert.",
    "wavlm": "wavlm.",
    "data2vec-audio": "data2vec_audio.",
}
"""Of the base model's weights in a model with a head, for each type in config.json."""
