"""Objectives: what a model is trained for. One file each, for all modalities."""

from .classification import Classification, MultiLabel
from .contrastive import Contrastive, SigmoidContrastive, Similarity
from .distillation import Distillation, DistillConfig
from .latent import LatentConfig, LatentPrediction
from .masked_autoencoder import MaskedAutoencoder, MaskedConfig, MaskedPrediction
from .masked_latents import MaskedLatents
from .masked_patches import MaskedPatches
from .masked_tokens import MaskedTokens
from .objective import IGNORE, Batch, JointObjective, Objective
from .regression import Regression
from .token_distillation import TokenDistillation, TokenProjection

__all__ = [
    "IGNORE",
    "Batch",
    "Classification",
    "Contrastive",
    "DistillConfig",
    "Distillation",
    "JointObjective",
    "LatentConfig",
    "LatentPrediction",
    "MaskedAutoencoder",
    "MaskedConfig",
    "MaskedLatents",
    "MaskedPatches",
    "MaskedPrediction",
    "MaskedTokens",
    "MultiLabel",
    "Objective",
    "Regression",
    "SigmoidContrastive",
    "Similarity",
    "TokenDistillation",
    "TokenProjection",
]
