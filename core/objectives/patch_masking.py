"""Which patches are masked: the data set gives each patch a random number, and those with the least are masked."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.utils.data import Dataset

from .objective import Batch


def mask_patches(noise: Float[Tensor, "b n"], real: Bool[Tensor, "b n"] | None, ratio: float) -> Bool[Tensor, "b n"]:
    """True for the masked patches: this ratio of each sample's real patches, those with the least noise; at least one
    patch, but not all unless there is only one."""
    if real is None:
        real = torch.ones_like(noise, dtype=torch.bool)
    rank = noise.where(real, torch.inf).argsort(dim=1, stable=True).argsort(dim=1)
    total = real.sum(dim=1)
    count = (ratio * total).round().clamp(min=1).minimum((total - 1).clamp(min=1))
    return (rank < count[:, None]) & real


class WithMaskNoise(Dataset):
    """A data set's samples (inputs ..., target), each with a number from 0 to 1 for each patch.

    The patches of a block have the same number; where the blocks begin is random. fixed: a sample always has the same
    numbers, as a test set needs.
    """

    def __init__(self, data: Any, grid: tuple[int, int], block: tuple[int, int], fixed: bool):
        self.data, self.grid, self.fixed = data, grid, fixed
        self.block = (block[0] or grid[0], block[1] or grid[1])

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple:
        generator = np.random.default_rng(index if self.fixed else np.random.randint(2**31))
        return self.data[index], block_noise(generator, self.grid, self.block)


def block_noise(
    generator: np.random.Generator, grid: tuple[int, int], block: tuple[int, int]
) -> Float[Tensor, "rows columns"]:
    """One random number for each block of patches, at a random offset."""
    starts = [int(generator.integers(size)) for size in block]
    coarse = generator.random([-(-(n + start) // size) for n, start, size in zip(grid, starts, block, strict=True)])
    fine = coarse.repeat(block[0], axis=0).repeat(block[1], axis=1)
    return torch.from_numpy(fine[starts[0] :, starts[1] :][: grid[0], : grid[1]].astype(np.float32))


def collate_with_mask_noise(collate: Callable[[list], Batch], samples: Sequence[tuple]) -> Batch:
    """collate: makes a batch of the samples without the noise."""
    inputs, targets = collate([sample for sample, _ in samples])
    return Batch((*inputs, torch.stack([noise for _, noise in samples])), torch.zeros(len(targets)))
