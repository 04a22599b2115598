"""The shared core: knows attention, and no modality."""

from . import adapters, peft
from .attention import (
    Attention,
    AttentionCall,
    attend,
    attention_backend,
    attention_rollout,
    explain,
    record_attention,
)
from .config import from_dict, to_dict
from .contrastive import Contrastive, SigmoidContrastive, Similarity
from .encoder import MLP, Block, Encoder, EncoderConfig, make_norm, share, sparsify, unshare
from .errors import UserError
from .hub import HubModel
from .init import constant, init_weights, learned
from .objectives import IGNORE, Batch, Classification, MaskedTokens, MultiLabel, Objective, Regression
from .patches import Pair, PatchEmbedding, pair, patch_grid
from .pooling import AttentionPool, Pool, pool
from .positions import LearnedPositions, resize_positions, rotary_table, rotate, sincos_positions
from .reference import attend_reference, attention_weights
from .tokens import Tokens
from .weights import Move, WeightsError, convert, load

__all__ = [
    "IGNORE",
    "MLP",
    "Attention",
    "AttentionCall",
    "AttentionPool",
    "Batch",
    "Block",
    "Classification",
    "Contrastive",
    "Encoder",
    "EncoderConfig",
    "HubModel",
    "LearnedPositions",
    "MaskedTokens",
    "Move",
    "MultiLabel",
    "Objective",
    "Pair",
    "PatchEmbedding",
    "Pool",
    "Regression",
    "SigmoidContrastive",
    "Similarity",
    "Tokens",
    "UserError",
    "WeightsError",
    "adapters",
    "attend",
    "attend_reference",
    "attention_backend",
    "attention_rollout",
    "attention_weights",
    "constant",
    "convert",
    "explain",
    "from_dict",
    "init_weights",
    "learned",
    "load",
    "make_norm",
    "pair",
    "patch_grid",
    "peft",
    "pool",
    "record_attention",
    "resize_positions",
    "rotary_table",
    "rotate",
    "share",
    "sincos_positions",
    "sparsify",
    "to_dict",
    "unshare",
]
