"""How far a classifier's probabilities are from the shares of its predictions that are right."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

BINS = 15


def calibration_error(probabilities: Float[Tensor, "n classes"], targets: Int[Tensor, "n"], bins: int = BINS) -> float:
    """The expected calibration error (Guo et al. 2017, equation 3) of the predicted classes, from 0 to 1.

    Samples are put into bins of equal width by the probability of the predicted class. In each bin the mean probability
    is compared with the accuracy, and the differences are averaged over the samples. It is biased upwards where samples
    are few: with 15 bins, 100 samples of a perfectly calibrated model have about 0.1.
    """
    if not len(targets):
        return 0.0
    confidence, predicted = probabilities.double().max(dim=-1)
    # A bin has its upper end, not its lower one, as in equation 1.
    place = (confidence * bins).ceil().long().clamp(1, bins) - 1
    difference = confidence - (predicted == targets).double()
    sums = torch.zeros(bins, dtype=torch.float64).index_add(0, place, difference)
    return (sums.abs().sum() / len(targets)).item()
