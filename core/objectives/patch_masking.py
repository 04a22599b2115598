"""Which patches are masked: the data set gives each patch a random number, and those with the least are masked."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.utils.data import Dataset

from ..attention.packing import Packing
from ..errors import UserError
from ..sparse.layout import Grid
from .objective import Batch


def count_masked(patches: int | Int[Tensor, "*b"], ratio: float, spared: int = 0) -> Int[Tensor, "*b"]:
    """How many patches of a sample are masked: this ratio, at least one, but not all unless there is only one, and none
    of so many that are spared."""
    total = torch.as_tensor(patches)
    most = (total - max(spared, 1)).clamp(min=1).minimum((total - spared).clamp(min=0))
    return (ratio * total).round().to(torch.int64).clamp(min=1).minimum(most)


def mask_patches(noise: Float[Tensor, "b n"], real: Bool[Tensor, "b n"] | None, ratio: float) -> Bool[Tensor, "b n"]:
    """True for the masked patches: this ratio of each sample's real patches (`count_masked`), those with the least
    noise."""
    count = count_masked(noise.shape[1] if real is None else real.sum(dim=1, keepdim=True), ratio)
    ordered = noise if real is None else noise.where(real, torch.inf)
    rank = ordered.argsort(dim=1, stable=True).argsort(dim=1)
    return rank < count.to(rank.device)


def mask_packed_patches(
    noise: Float[Tensor, "b rows columns"], packing: Packing, counts: Int[Tensor, "s"]
) -> Bool[Tensor, "n"]:
    """True for the masked patches of samples of any sizes, packed in one row: of each so many (`count_masked`), those
    with the least noise. A sequence without a grid is a column."""
    lengths, _, rows, columns = packing.places.unbind(dim=1)
    sides = rows.where(packing.on_grid, lengths), columns.where(packing.on_grid, 1)
    largest = [int(side.max()) if len(packing) else 0 for side in sides]
    noise = noise_of_grid(noise, len(packing), (largest[0], largest[1]))
    sequence, position, row, column = packing.tokens_on(noise.device)
    order = noise[sequence, row, column].argsort(stable=True)
    order = order[sequence[order].argsort(stable=True)]  # the patches of each sample, from the least noise to the most
    rank = torch.empty_like(position).scatter(0, order, position)
    return rank < counts.to(noise.device)[sequence]


def noise_of_grid(
    noise: Float[Tensor, "b rows columns"], count: int, grid: Grid
) -> Float[Tensor, "b grid_rows grid_columns"]:
    """The noise for a grid: that of its rows and columns in the corner of a grid at least as large."""
    rows, columns = grid
    if len(noise) != count or noise.shape[1] < rows or noise.shape[2] < columns:
        raise UserError(
            f"Masked autoencoding: the noise is for {len(noise)} samples of at most {noise.shape[1]} x "
            f"{noise.shape[2]} patches, but there are {count} of up to {rows} x {columns}."
        )
    return noise[:, :rows, :columns]


class WithMaskNoise(Dataset):
    """A data set's samples (inputs ..., target), each with a number from 0 to 1 for each patch: "rows columns", or
    "masks rows columns" for several masks.

    grid: the rows and columns of patches that every sample has at most, or a function that finds those of a sample. A
    sample with fewer patches takes the numbers of the corner.
    block: the rows and columns of a block; 0 is all of them. The patches of a block have the same number, and where the
    blocks begin is random.
    fixed: a sample always has the same numbers, as a test set needs.
    frame: so many rows at the beginning and at the end have infinity instead, since they are not to be masked.
    """

    def __init__(
        self,
        data: Any,
        grid: Grid | Callable[[tuple], Grid],
        block: tuple[int, int],
        fixed: bool,
        masks: int | None = None,
        frame: tuple[int, int] = (0, 0),
    ):
        self.data, self.grid, self.block, self.fixed = data, grid, block, fixed
        self.masks, self.frame = masks, frame

    @property
    def token_counts(self) -> Sequence[int] | None:
        return getattr(self.data, "token_counts", None)

    @property
    def shards(self) -> Any:
        """How the samples lie in shards, if they do."""
        return getattr(self.data, "shards", None)

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple:
        sample = self.data[index]
        generator = np.random.default_rng(index if self.fixed else np.random.randint(2**31))
        grid = self.grid(sample) if callable(self.grid) else self.grid
        noise = torch.stack([block_noise(generator, grid, self.block) for _ in range(self.masks or 1)])
        before, after = self.frame
        noise[:, :before], noise[:, grid[0] - after :] = torch.inf, torch.inf
        return sample, noise[0] if self.masks is None else noise


def block_noise(generator: np.random.Generator, grid: Grid, block: tuple[int, int]) -> Float[Tensor, "rows columns"]:
    """One random number for each block of patches, at a random offset; a block that spans the grid is not shifted.

    If one block would be all of the grid, each patch has a number of its own: else the first would always be masked.
    """
    block = (block[0] or grid[0], block[1] or grid[1])
    starts = [0 if size == n else int(generator.integers(size)) for n, size in zip(grid, block, strict=True)]
    coarse = generator.random([-(-(n + start) // size) for n, start, size in zip(grid, starts, block, strict=True)])
    if coarse.size == 1:
        return torch.from_numpy(generator.random(grid).astype(np.float32))
    fine = coarse.repeat(block[0], axis=0).repeat(block[1], axis=1)
    return torch.from_numpy(fine[starts[0] :, starts[1] :][: grid[0], : grid[1]].astype(np.float32))


def collate_with_mask_noise(collate: Callable[[list], Batch], samples: Sequence[tuple]) -> Batch:
    """collate: makes a batch of the samples without the noise."""
    inputs, targets = collate([sample for sample, _ in samples])
    noises = [noise for _, noise in samples]
    rows, columns = (max(noise.shape[axis] for noise in noises) for axis in (-2, -1))
    joined = torch.stack([F.pad(x, (0, columns - x.shape[-1], 0, rows - x.shape[-2])) for x in noises])
    return Batch((*inputs, joined), torch.zeros(len(targets)))
