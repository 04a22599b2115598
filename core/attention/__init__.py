"""Attention: one function, one module, one mask contract on every backend (see attend.py)."""

from .attend import attend
from .backends import BACKENDS, Choice, attention_backend, explain
from .maps import attention_map, attention_rollout
from .module import Attention
from .recording import AttentionCall, record_attention
from .reference import attend_reference, attention_weights
from .relation import Relation
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
    "record_attention",
    "rotary_table",
    "rotate",
]
