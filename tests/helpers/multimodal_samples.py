"""Things in pictures, sounds and words, for tests of the multimodal models."""

import torch

from examples.multimodal.data import Shown

PAD = 0


def samples(count=6):
    """Things shown in all three ways, none as long as another."""
    random = torch.Generator().manual_seed(0)
    return [
        Shown(
            torch.randn(1, 8, 8, generator=random),
            torch.randn(1600 + 400 * number, generator=random),
            torch.randint(5, 200, (3 + number,), generator=random),
            number,
        )
        for number in range(count)
    ]
