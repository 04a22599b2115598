"""What a model is trained for: one file each, for all modalities."""

from .classification import Classification, MultiLabel
from .contrastive import Contrastive, SigmoidContrastive, Similarity
from .masked_patches import MaskedAutoencoder, MaskedConfig, MaskedPatches
from .masked_tokens import MaskedTokens
from .objective import IGNORE, Batch, JointObjective, Objective
from .regression import Regression

__all__ = [
    "IGNORE",
    "Batch",
    "Classification",
    "Contrastive",
    "JointObjective",
    "MaskedAutoencoder",
    "MaskedConfig",
    "MaskedPatches",
    "MaskedTokens",
    "MultiLabel",
    "Objective",
    "Regression",
    "SigmoidContrastive",
    "Similarity",
]
