"""Attention: one function, one module, one mask contract on every backend (see attend.py)."""

from .attend import attend
from .backends import BACKENDS, Choice, attention_backend, explain
from .maps import attention_map, attention_rollout, pooling_weights
from .module import Attention
from .recording import AttentionCall, record_attention
from .reference import attend_reference, attention_weights
from .relation import Relation
from .relevance import gradient_weighted, output_gradients, relevance, weight_gradients
from .rotary import rotary_table, rotate

__all__ = [
    "BACKENDS",
    "Attention",
    "AttentionCall",
    "Choice",
    "Relation",
    "attend",
    "attend_reference",
    "attention_backend",
    "attention_map",
    "attention_rollout",
    "attention_weights",
    "explain",
    "gradient_weighted",
    "output_gradients",
    "pooling_weights",
    "record_attention",
    "relevance",
    "rotary_table",
    "rotate",
    "weight_gradients",
]
