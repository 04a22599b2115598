"""The baseline: a logistic regression on pairs of residues, which does not see the rest of the chain."""

import numpy as np
import torch
from jaxtyping import Float, Int
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import OneHotEncoder
from torch import Tensor

from core import IGNORE

from .data import Chain, ProteinData, collate
from .objective import precision


def pair_features(chain: Chain) -> Int[np.ndarray, "pairs features"]:
    """Of each pair that can touch: separation, place, the two residues, and these with their neighbours (0: none)."""
    i, j = (chain.contacts != IGNORE).nonzero(as_tuple=True)
    around = torch.nn.functional.pad(chain.residues + 1, (1, 1)).unfold(0, 3, 1)
    codes = (around * torch.tensor([9, 3, 1])).sum(dim=1)
    first, second, left, right = codes[i], codes[j], chain.residues[i], chain.residues[j]
    separation, from_ends = j - i, torch.minimum(i, len(codes) - 1 - j)
    both = 2 * left + right
    features = [separation, 4 * separation + both, i, len(codes) - 1 - j, from_ends, first, second, 27 * first + second]
    return torch.stack([*features, torch.full_like(i, len(codes))], dim=1).numpy()


def logistic_regression(data: ProteinData) -> float:
    """Its test precision, after training on the same chains in both directions."""
    chains = [direction for chain in data.train.chains for direction in (chain, chain.reversed())]
    fractions = np.concatenate([chain.contacts[chain.contacts != IGNORE].numpy() for chain in chains])
    encoder = OneHotEncoder(handle_unknown="ignore")
    features = encoder.fit_transform(np.concatenate([pair_features(chain) for chain in chains]))
    touching, apart = np.flatnonzero(fractions > 0), np.flatnonzero(fractions < 1)  # a pair may be in both
    rows = np.concatenate([touching, apart])
    weights = np.concatenate([fractions[touching], 1 - fractions[apart]])
    model = LogisticRegression(C=1.0, max_iter=100)
    model.fit(features[rows], np.arange(len(rows)) < len(touching), weights)
    batch, logits = collate(data.test.chains), baseline_logits(model, encoder, data.test.chains)
    return precision(logits, batch.targets, batch.inputs[1].sum(dim=1)).mean().item()


def baseline_logits(model: LogisticRegression, encoder: OneHotEncoder, chains: list[Chain]) -> Float[Tensor, "b n n"]:
    targets = collate(chains).targets
    logits = model.decision_function(encoder.transform(np.concatenate([pair_features(chain) for chain in chains])))
    return torch.zeros_like(targets).masked_scatter(targets != IGNORE, torch.from_numpy(logits).float())
