"""Knowledge distillation: a classifier learns from the logits of a trained one (Hinton et al. 2015)."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ..attention.recording import as_teacher
from ..config import Positive, ZeroToOne, configclass
from ..errors import UserError
from .classification import Classification
from .features import RECORD as FEATURES
from .objective import Batch, at_least_fp32


@configclass
class DistillConfig:
    teacher: str | None = None
    """Learn from this classifier as well: a run, a directory written by save_pretrained, or a stock checkpoint, of the
    same classes. None: from the labels alone. With adapt, any model whose tokens are to be learnt; None: no other."""
    weight: ZeroToOne = 0.5
    """Share of the teacher in the loss; the rest is that of the labels. Not for adapt."""
    temperature: Positive = 2.0
    """By which the logits of both are divided before they are compared. Not for adapt."""


@dataclass(frozen=True, kw_only=True)
class Distillation(Classification):
    """The loss of the labels, and the divergence of the model's probabilities from the teacher's, softened by a
    temperature and times its square (Hinton et al. 2015, section 2).

    The teacher sees the very batch that the model sees, augmented and mixed. It is not trained, has no dropout, and
    draws no random numbers, so that a run is as exact with it as without.
    """

    teacher: nn.Module
    """From the inputs of the model to logits of the same classes."""
    share: float = 0.5
    temperature: float = 2.0

    def __post_init__(self):
        self.teacher.requires_grad_(False).eval()

    def loss_of(self, logits: Float[Tensor, "b classes"], batch: Batch) -> Float[Tensor, ""]:
        t = self.temperature
        expected = (self.teach(batch, logits.device) / t).log_softmax(dim=-1)
        divergence = F.kl_div((logits / t).log_softmax(dim=-1), expected, reduction="none", log_target=True).sum(dim=1)
        soft = (divergence * self.sample_weights(batch.targets)).sum() * t**2
        return (1 - self.share) * super().loss_of(logits, batch) + self.share * soft

    @torch.no_grad()
    def teach(self, batch: Batch, device: torch.device) -> Float[Tensor, "b classes"]:
        """The teacher's logits; what it attends to is not recorded as the model's."""
        if next(self.teacher.parameters()).device != device:
            self.teacher.to(device)
        with as_teacher(), FEATURES.set(None):
            return at_least_fp32(self.teacher(*batch.inputs))


class Reordered(nn.Module):
    """A teacher with its classes in another order. order: for each of our classes the number of the teacher's."""

    def __init__(self, teacher: nn.Module, order: Sequence[int]):
        super().__init__()
        self.teacher, self.order = teacher, list(order)

    def forward(self, *inputs) -> Float[Tensor, "b classes"]:
        return self.teacher(*inputs)[:, self.order]


def with_classes(teacher: nn.Module, source: str, theirs: Sequence[str], ours: Sequence[str]) -> nn.Module:
    """The teacher with its classes in our order; a UserError if they are others. source: what names it."""
    if not theirs:
        raise UserError(f"--distill.teacher {source} does not name its classes, so it is not known which are ours.")
    if {*theirs} != {*ours}:
        other = next(iter(sorted({*ours} - {*theirs}) or sorted({*theirs} - {*ours})))
        where = "the data have, and not the teacher" if other in ours else "the teacher has, and not the data"
        raise UserError(f"--distill.teacher {source} has other classes: {other!r} is one that {where}.")
    return teacher if tuple(theirs) == tuple(ours) else Reordered(teacher, [theirs.index(name) for name in ours])
