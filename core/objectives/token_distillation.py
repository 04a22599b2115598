"""Token distillation: without labels, a model learns to compute the tokens of a trained one.

Hints of Romero et al. (2015), here from the last layer and for all tokens, with a second map for the whole sample, as
vision models are distilled from several others (Ranzinger et al. 2024, AM-RADIO, section 3.3).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..attention.recording import as_teacher
from ..encoder.init import init_weights
from ..encoder.pack import pack
from ..encoder.pooling import pool
from ..encoder.tokens import Tokens
from ..errors import UserError
from .features import RECORD as FEATURES
from .latent import LatentErrors, TokenModel, has_class, mean_of_each
from .mask_decoder import body_index, freeze_output
from .masked_latents import MaskedLatents
from .objective import Batch, at_least_fp32


class SampleTokens(NamedTuple):
    """The tokens of all samples in a row without class and register tokens, a vector of each sample, and how many
    tokens each has."""

    tokens: Float[Tensor, "n d"]
    summary: Float[Tensor, "s d"]
    lengths: Int[Tensor, "s"]


class TokenProjection(nn.Module):
    """A model, and linear maps from its tokens to a teacher's; `model` is what is kept after training."""

    def __init__(self, model: TokenModel, width: int):
        """width: of the teacher's tokens."""
        super().__init__()
        self.model = model
        self.head, self.summary_head = (nn.Linear(model.encoder.config.dim, width) for _ in range(2))
        for part in (self.head, self.summary_head):
            init_weights(part)

    def freeze_unused(self) -> None:
        """Freeze what comes after the model's encoder."""
        freeze_output(self.model)

    def forward(self, *inputs: Any) -> SampleTokens:
        tokens, summary, lengths = encoded_by(self.model, inputs)
        return SampleTokens(self.head(tokens), self.summary_head(summary), lengths)


@dataclass(frozen=True, kw_only=True)
class TokenDistillation(MaskedLatents):
    """Predict the teacher's tokens and its summary of each sample, both normalised. The model is a `TokenProjection`.

    The teacher sees what the model sees. It is not trained, has no dropout, and draws no random numbers.
    """

    teacher: Any
    """A module and `TokenModel` that makes as many tokens of each sample as the model does."""

    def __post_init__(self):
        self.teacher.requires_grad_(False).eval()

    def errors(self, model: nn.Module, batch: Batch) -> LatentErrors:
        found = model(*batch.inputs)
        expected = self.teach(batch, found.tokens.device)
        if not torch.equal(found.lengths, expected.lengths):
            ours, theirs = next(
                (ours, theirs)
                for ours, theirs in zip(found.lengths.tolist(), expected.lengths.tolist(), strict=True)
                if ours != theirs
            )
            raise UserError(
                f"The teacher makes {theirs} tokens of a sample, and the model {ours}: give the model the teacher's "
                "patches (--model.patch-size, --model.stride and what else its tokens are cut by)."
            )
        sequence = torch.arange(len(found.lengths)).repeat_interleave(found.lengths).to(found.tokens.device)
        errors = (at_least_fp32(found.tokens) - expected.tokens).square().mean(dim=1, keepdim=True)
        of_summary = (at_least_fp32(found.summary) - expected.summary).square().mean(dim=1)
        return LatentErrors(mean_of_each(errors, sequence, len(found.lengths))[:, 0], of_summary)

    @torch.no_grad()
    def teach(self, batch: Batch, device: torch.device) -> SampleTokens:
        """The teacher's tokens and summaries, each normalised over its features."""
        if next(self.teacher.parameters()).device != device:
            self.teacher.to(device)
        with as_teacher(), FEATURES.set(None):
            tokens, summary, lengths = encoded_by(self.teacher, batch.inputs)
        width = tokens.shape[-1:]
        normed = F.layer_norm(at_least_fp32(tokens), width), F.layer_norm(at_least_fp32(summary), width)
        return SampleTokens(*normed, lengths)


def encoded_by(model: TokenModel, inputs: Sequence[Any]) -> SampleTokens:
    """What a model makes of samples; the summary is its class token, or the mean of the tokens if it has none."""
    encoded: Tokens = model.encoder(pack(model.tokens(*inputs)))
    packing = encoded.packing
    assert packing is not None
    summary = pool(encoded, "cls" if has_class(model, encoded) else "mean")
    return SampleTokens(
        encoded.x[0, body_index(packing, encoded.x.device)], summary, packing.lengths - packing.prefixes
    )
