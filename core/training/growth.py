"""Inputs that grow in the course of training: small ones cost less, and are enough to begin with.

Progressive resizing of images (Tan and Le 2021, EfficientNetV2, section 4).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ..objectives.objective import Batch


@dataclass(frozen=True)
class Growth:
    """Each size is trained on for an equal number of steps, in this order."""

    sizes: Sequence[Any] = (None,)
    """Whatever `resize` takes; the last one is the size that the model is for. There is one by default."""
    resize: Callable[[Batch, Any], Batch] = lambda batch, size: batch
    """A batch with samples of another size. It gets whole batches, on the device and after `Task.mix`."""

    def size(self, step: int, steps: int) -> int:
        """The number of the size that a step has, of so many in all."""
        return min(step * len(self.sizes) // max(steps, 1), len(self.sizes) - 1)

    def starts(self, steps: int) -> list[int]:
        """The first step of each size; sizes may have none, if there are more of them than steps."""
        return [-(-number * steps // len(self.sizes)) for number in range(len(self.sizes))]

    def resized(self, batch: Batch, step: int, steps: int) -> Batch:
        return self.resize(batch, self.sizes[self.size(step, steps)])
