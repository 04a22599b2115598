"""How far an accuracy on so many samples may be from that on all samples of their kind."""

import math

QUANTILE = 1.959964  # of the normal distribution, for 95 %


def wilson_interval(share: float, count: int) -> tuple[float, float]:
    """The 95 % confidence interval of a share that was found among `count` samples (Wilson 1927)."""
    if not count:
        return 0.0, 1.0
    weight = QUANTILE**2 / count
    middle = (share + weight / 2) / (1 + weight)
    half = QUANTILE / (1 + weight) * math.sqrt(share * (1 - share) / count + weight / count / 4)
    return max(middle - half, 0.0), min(middle + half, 1.0)
