"""Encoders of every kind of block, norm and position."""

from dataclasses import replace

from core import EncoderConfig

SMALL = EncoderConfig(dim=32, depth=3, heads=4)
VARIANTS = {
    "pre": SMALL,
    "post": replace(SMALL, norm_order="post", norm_eps=1e-12),
    "norms at the end of branches": replace(SMALL, norm_order="res_post", layer_scale=0.5),
    "parallel": replace(SMALL, parallel=True, layer_scale=0.5, activation="swiglu"),
    "rmsnorm swiglu": replace(SMALL, norm="rmsnorm", activation="swiglu", qkv_bias=False, mlp_bias=False),
    "geglu without a first bias": replace(SMALL, activation="geglu", mlp_up_bias=False),
    "geglu, norms without bias": replace(SMALL, activation="geglu", norm_bias=False, out_bias=False),
    "quick_gelu, input norm": replace(SMALL, activation="quick_gelu", input_norm=True, final_norm=False),
    "tanh, relu by layer": replace(SMALL, activation=("gelu_tanh", "relu"), mlp_dim=(24, 40)),
    "scale, qk norm": replace(SMALL, layer_scale=0.1, qk_norm=True),
    "qk norm of all heads": replace(SMALL, qk_norm=True, qk_norm_whole=True, norm="rmsnorm"),
    "rotary 1d": replace(SMALL, rotary="1d", rotary_theta=(100.0, 10_000.0)),
    "rotary 2d": replace(SMALL, rotary="2d"),
    "rotary 2d unit": replace(SMALL, rotary="2d", rotary_unit=True, rotary_theta=100.0),
    "rotary 2d, of a reference grid": replace(SMALL, rotary="2d", rotary_reference=(5, 7)),
    "rotary 2d, learned": replace(SMALL, rotary="2d", rotary_learned=True, rotary_theta=10.0),
    "rotary 2d, of an offset": replace(SMALL, rotary="2d", rotary_offset=1.0, rotary_reference=(5, 7)),
    "inner norms": replace(SMALL, attention_inner_norm=True, mlp_inner_norm=True, activation="swiglu"),
    "relative biases": replace(SMALL, relative_bias=(3, 4)),
    "shared relative biases of another grid": replace(SMALL, relative_bias=(4, 6), relative_bias_shared=True),
    "biases by distance": replace(SMALL, distance_bias=(8, 9)),
    "gated biases by distance": replace(SMALL, distance_bias=(8, 9), distance_gate=True),
    "disentangled": replace(SMALL, disentangled=(8, 9), norm_order="post"),
    "fewer heads of keys and values": replace(SMALL, kv_heads=2, qk_norm=True, rotary="1d"),
    "wide heads": replace(SMALL, head_dim=12),
    "stochastic": replace(SMALL, dropout=0.1, attention_dropout=0.1, drop_path=0.3),
}
