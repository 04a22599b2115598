"""Whole models on long inputs, batch 1, fp32, of the peer's weights: ours by pattern against the peer's own model.

AST and ViT attend to neighbours where the peer attends to everything, so their outputs differ; ModernBERT has windows
of its own, and equal outputs.
"""

from collections.abc import Iterator
from dataclasses import replace

import torch
import transformers
from torch import Tensor, nn

from core import sparsify
from core.sparse import Window2d
from text import from_hf

from . import ast, vit
from .pair import Pair, compare
from .row import Row, Run, versioned


class Encoded(nn.Module):
    """The last hidden states of ours or transformers'."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor) -> Tensor:
        if isinstance(self.model, transformers.PreTrainedModel):
            return self.model(ids).last_hidden_state
        return self.model.encode(ids).x


def ast_pair(tiny: bool) -> Pair:
    found = ast.pair(tiny, frames=6000, batch=1)
    sparsify(found.ours.model, Window2d(8))
    return replace(found, what="AST-S, 60 s of audio (7,190 tokens), Window2d(8)", equal=False)


def vit_pair(tiny: bool) -> Pair:
    found = vit.pair(tiny, size=1024, batch=1)
    return replace(
        found, what="ViT-S/16, 1024 px (4,097 tokens), Window2d(8)", ours=sparsify(found.ours, Window2d(8)), equal=False
    )


def modernbert_pair(tiny: bool) -> Pair:
    shape = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64, "num_hidden_layers": 2}
    config = transformers.ModernBertConfig(**(shape if tiny else {"num_hidden_layers": 12}), attn_implementation="sdpa")
    peer = transformers.ModernBertModel(config).eval()
    return Pair(
        what="ModernBERT, 12 layers, 8,192 tokens, its own windows",
        peer=versioned("transformers"),
        ours=Encoded(from_hf(peer)),
        theirs=Encoded(peer),
        inputs=torch.randint(5, 50_000, (1, 64 if tiny else 8192)),
    )


def rows(run: Run) -> Iterator[Row]:
    yield from compare(ast_pair, run, training=3, precisions=["fp32"], goals={"training step, fp32": 4.0})
    yield from compare(vit_pair, run, training=5, precisions=["fp32"], goals={"training step, fp32": 2.8})
    yield from compare(modernbert_pair, run, inference=3, precisions=["fp32"], goals={"inference, fp32": 2.3})
