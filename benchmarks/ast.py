"""AST-S against transformers' with SDPA, of the same weights, from features on, so that only the models differ."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from transformers import ASTConfig, ASTForAudioClassification

from audio import from_hf

from .pair import Logits, Pair, compare
from .row import Row, Run, versioned


class FromFeatures(nn.Module):
    """Our AST from normalised features "b frames mel" on, as transformers' takes them."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, features: Tensor) -> Tensor:
        model = self.model
        return model.head(model.pooled(model.encoder(model.embed(features.mT))))


def pair(tiny: bool, frames: int = 1024, batch: int = 2) -> Pair:
    shape = {"hidden_size": 384, "num_attention_heads": 6, "intermediate_size": 1536, "max_length": frames}
    if tiny:
        shape = {"hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 1, "max_length": 64}
    config = ASTConfig(**shape, num_labels=527, attn_implementation="sdpa")
    peer = ASTForAudioClassification(config)
    return Pair(
        what=f"AST-S, {frames:,} frames, batch {batch}",
        peer=versioned("transformers"),
        ours=FromFeatures(from_hf(peer)),
        theirs=Logits(peer),
        inputs=torch.randn(batch, config.max_length, 128),
    )


def rows(run: Run) -> Iterator[Row]:
    goals = {"training step, fp32": 1.02, "training step, bf16": 1.3}
    yield from compare(pair, run, inference=11, training=7, goals=goals)
