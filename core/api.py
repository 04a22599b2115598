"""What `core` exports. `core` itself loads it when the first of these names is used, not before."""

from . import adapters
from .adapters import peft
from .attention.attend import attend
from .attention.backends import attention_backend, explain
from .attention.maps import attention_rollout
from .attention.module import Attention
from .attention.recording import AttentionCall, record_attention
from .attention.reference import attend_reference, attention_weights
from .attention.relation import Relation
from .attention.rotary import rotary_table, rotate
from .checkpoints.keys import Move, WeightsError, convert, load
from .config import from_dict, to_dict
from .encoder.blocks import MLP, Block, make_norm
from .encoder.config import EncoderConfig
from .encoder.encoder import Encoder
from .encoder.init import constant, init_weights, learned
from .encoder.patches import Pair, PatchEmbedding, pair, patch_grid
from .encoder.pooling import AttentionPool, Pool, pool, pooled_width
from .encoder.positions import LearnedPositions, PositionResize, resize_positions, sincos_positions
from .encoder.surgery import share, sparsify, unshare
from .encoder.tokens import Tokens
from .errors import UserError
from .models.hub import HubModel
from .objectives.classification import Classification, MultiLabel
from .objectives.contrastive import Contrastive, SigmoidContrastive, Similarity
from .objectives.masked_tokens import MaskedTokens
from .objectives.objective import IGNORE, Batch, Objective
from .objectives.regression import Regression

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
    "PositionResize",
    "Regression",
    "Relation",
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
    "pooled_width",
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
