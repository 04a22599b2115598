"""The configuration of an encoder."""

from typing import Annotated, Literal

from annotated_types import Interval
from pydantic import Strict

from ..config import BelowOne, Layers, NotNegative, Real, Size, UpToOne, configclass
from ..errors import UserError
from ..sparse import Pattern

Activation = Literal["gelu", "gelu_tanh", "quick_gelu", "relu", "geglu", "swiglu"]
GATED = ("geglu", "swiglu")

Period = Annotated[float, Strict(), Interval(ge=1, le=1e12)]


@configclass
class EncoderConfig:
    dim: Size = 384
    """Width of a token."""
    depth: Layers = 12
    """Number of layers."""
    heads: Size = 6
    """Attention heads."""
    kv_heads: Size | tuple[Size, ...] | None = None
    """Heads of the keys and values (per layer, tiled), each for heads / kv_heads successive heads of the queries;
    `heads` if None."""
    head_dim: Size | None = None
    """Width of a head; dim / heads if None."""
    mlp_dim: Size | tuple[Size, ...] | None = None
    """Hidden width of the MLP (per layer, tiled); 4 * dim if None. A gated MLP has two of it."""
    activation: Activation | tuple[Activation, ...] = "gelu"
    """Of the MLP (per layer, tiled); geglu and swiglu are gated."""
    norm: Literal["layernorm", "rmsnorm"] = "layernorm"
    """Kind of norm."""
    norm_order: Literal["pre", "post", "res_post"] = "pre"
    """Norm before each branch (ViT), after each sum (BERT) or at the end of each branch (Swin V2)."""
    parallel: bool = False
    """Attention and MLP read the same normed tokens, and are added together (ViT-22B)."""
    norm_eps: UpToOne = 1e-6
    """Added to the variance."""
    norm_bias: bool = True
    """Whether a LayerNorm has a bias."""
    input_norm: bool = False
    """A norm before the first block (CLIP)."""
    first_norm: bool = True
    """Whether the first layer has a norm before attention; not needed after an input or embedding norm (ModernBERT)."""
    final_norm: bool = True
    """A norm after the last block; post-norm encoders have none."""
    shared_groups: Layers | None = None
    """Number of blocks, each shared by depth / shared_groups successive layers (ALBERT: 1). None: one per layer."""
    qkv_bias: bool = True
    """Bias of the query, key and value projections."""
    out_bias: bool = True
    """Bias of the attention's output projection."""
    mlp_bias: bool = True
    """Bias of the MLP's projections."""
    mlp_up_bias: bool = True
    """Whether the first of them has a bias, too; GTE's has none."""
    qk_norm: bool = False
    """Norm each head's queries and keys."""
    qk_norm_whole: bool = False
    """Norm the queries of all heads at once, and the keys (ESM C)."""
    attention_inner_norm: bool = False
    """A norm of what attention returns, before its output projection (BEiT-3, EVA-02)."""
    mlp_inner_norm: bool = False
    """A norm of what the MLP's activation returns, before its second projection (BEiT-3, EVA-02)."""
    layer_scale: NotNegative | None = None
    """Initial gain of each branch, learned per feature; None for no gain."""
    rotary: Literal["1d", "2d"] | None = None
    """Rotary positions over the sequence or over the grid."""
    rotary_theta: Period | tuple[Period, ...] = 10_000.0
    """Longest rotary period, in tokens / 2 pi (per layer, tiled)."""
    rotary_learned: bool = False
    """Rotary frequencies of rows and columns are learned, for each layer and head (Heo et al. 2024, RoPE-Mixed)."""
    rotary_offset: Real = 0.0
    """The first rotary coordinate (Perception Encoder: 1)."""
    rotary_reference: tuple[Size, Size] | None = None
    """Rotary coordinates of any grid are scaled to those of a grid of so many rows and columns (EVA-02)."""
    rotary_unit: bool = False
    """Rotary coordinates from -1 to 1 over the input instead of counting tokens (DINOv3)."""
    relative_bias: tuple[Size, Size] | None = None
    """Learned biases of attention by the offset of two patches, for a grid of so many rows and columns (BEiT)."""
    relative_bias_shared: bool = False
    """Whether all layers share these biases; else each has its own."""
    distance_bias: tuple[Size, Size] | None = None
    """Learned biases of attention by the distance of two tokens in a sequence, shared by all layers: so many buckets,
    the last of them for this distance and all beyond (T5, MPNet)."""
    distance_gate: bool = False
    """Whether each layer multiplies these biases by a gate of its own, of each query's token (WavLM)."""
    disentangled: tuple[Size, Size] | None = None
    """Queries and keys also meet learned vectors of their relative position, which all layers share: so many buckets to
    each side, the last of them for this distance and all beyond (DeBERTa)."""
    patterns: Pattern | tuple[Pattern | None, ...] | None = None
    """Who attends to whom (per layer, tiled); None for everybody to everybody."""
    dropout: BelowOne = 0.0
    """Of each branch's output."""
    attention_dropout: BelowOne = 0.0
    """Of the attention weights."""
    drop_path: BelowOne = 0.0
    """Probability to skip a branch in the last layer, rising linearly from 0 in the first."""
    checkpointing: bool = False
    """Recompute each layer in the backward pass instead of keeping its activations."""


def head_dim(config: EncoderConfig) -> int:
    """Width of a head."""
    return config.head_dim or config.dim // config.heads


def check_sharing(config: EncoderConfig, groups: int) -> None:
    """Refuse groups of layers that cannot share weights: a block is made by the settings of one layer."""
    if groups < 1 or config.depth % groups:
        raise UserError(f"EncoderConfig: {config.depth} layers cannot be shared out to {groups} groups evenly.")
    span = config.depth // groups
    for name in ("activation", "mlp_dim", "kv_heads"):
        of_layers = [per_layer(getattr(config, name), layer) for layer in range(config.depth)]
        if any(of_layers[layer] != of_layers[layer - layer % span] for layer in range(config.depth)):
            raise UserError(f"EncoderConfig: layers that share weights need one {name}, not {getattr(config, name)}.")


def per_layer(value, layer: int):
    """The value for one layer of a field that may be a tuple, tiled over the layers."""
    return value[layer % len(value)] if isinstance(value, tuple) else value
