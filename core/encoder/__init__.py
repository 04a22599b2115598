"""The encoder: one stack of blocks for every modality, from tokens to tokens."""

from .blocks import MLP, Block, make_norm
from .config import EncoderConfig
from .encoder import Encoder
from .init import constant, init_weights, learned
from .layers import LayerGroup, layer_groups
from .patches import Pair, PatchEmbedding, pair, patch_grid
from .pooling import AttentionPool, Pool, pool, pooled_width
from .positions import LearnedPositions, PositionResize, resize_positions, sincos_positions
from .surgery import share, sparsify, unshare
from .tokens import Tokens

__all__ = [
    "MLP",
    "AttentionPool",
    "Block",
    "Encoder",
    "EncoderConfig",
    "LayerGroup",
    "LearnedPositions",
    "Pair",
    "PatchEmbedding",
    "Pool",
    "PositionResize",
    "Tokens",
    "constant",
    "init_weights",
    "layer_groups",
    "learned",
    "make_norm",
    "pair",
    "patch_grid",
    "pool",
    "pooled_width",
    "resize_positions",
    "share",
    "sincos_positions",
    "sparsify",
    "unshare",
]
