"""What is to be predicted of a sample: from its label to the targets of a batch."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from ..errors import UserError

Label = int | tuple[int, ...] | float
"""The number of a class, the numbers of several, or the number to be predicted."""


def target_of(label: Label, classes: int) -> int | float | Float[Tensor, "classes"]:
    """Several classes are a tensor of zeros and ones."""
    if not isinstance(label, tuple):
        return label
    return torch.zeros(classes).index_fill(0, torch.tensor(label), 1.0)


def join_targets(targets: Sequence[int | float | Float[Tensor, "classes"]]) -> Shaped[Tensor, "b ..."]:
    """Of a batch; numbers to be predicted are kept in fp64."""
    if isinstance(targets[0], Tensor):
        return torch.stack([torch.as_tensor(target) for target in targets])
    return torch.tensor(targets, dtype=torch.float64 if isinstance(targets[0], float) else torch.long)


def number_of(where: str, label: str) -> float:
    """The number that a label is. where: names the sample in messages."""
    try:
        value = math.nan if "_" in label else float(label)  # Python takes 1_005 for a number
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UserError(f"{where}: the label {label!r} is not a number: correct it, or choose --data.target classes.")
    return value
