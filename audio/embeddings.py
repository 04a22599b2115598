"""From spectrograms of any lengths to tokens: patches of frequency (rows) and time (columns), two prefix tokens."""

from typing import Literal

import torch
import torch.nn.functional as F
from einops import repeat
from jaxtyping import Float, Int
from torch import Tensor, nn

from core import Pair, PatchEmbedding, Tokens, UserError, pair


class SpectrogramEmbedding(nn.Module):
    """(Overlapping) patches of a spectrogram behind a class and a distillation token (Gong et al. 2021, section 2.2).

    Bins and frames that no whole patch reaches are left out. A clip has a column for each whole patch that fits into
    its frames (one if none does); later columns are padding.
    """

    def __init__(
        self,
        dim: int,
        *,
        n_mels: int,
        max_frames: int,
        patch_size: Pair,
        stride: Pair,
        positions: Literal["learned", "sincos", "none"] = "learned",
        dropout: float = 0.0,
    ):
        super().__init__()
        self.patch_size, self.stride = pair(patch_size), pair(stride)
        self.grid = spectrogram_grid(n_mels, max_frames, patch_size, stride)
        self.patches = PatchEmbedding(
            dim,
            image_size=self.covered(self.grid),
            patch_size=self.patch_size,
            stride=self.stride,
            channels=1,
            class_token=True,
            registers=1,
            positions=positions,
            crop=True,
            dropout=dropout,
        )

    def forward(self, features: Float[Tensor, "b mel frames"], frames: Int[Tensor, "b"] | None = None) -> Tokens:
        """frames: how many each clip has; all if None."""
        features, columns = self.cut(features, frames)
        tokens = self.patches(features[:, None])
        if columns is None or bool((columns == tokens.grid[1]).all()):
            return tokens
        real = torch.arange(tokens.grid[1], device=columns.device) < columns[:, None]
        mask = F.pad(repeat(real, "b c -> b (r c)", r=self.grid[0]), (tokens.prefix, 0), value=True)
        return Tokens(tokens.x, mask=mask, grid=tokens.grid, prefix=tokens.prefix)

    def cut(
        self, features: Float[Tensor, "b mel frames"], frames: Int[Tensor, "b"] | None = None
    ) -> tuple[Float[Tensor, "b rows columns"], Int[Tensor, "b"] | None]:
        """What is covered by patches, 0 behind each clip's end; and each clip's columns of patches (None: all)."""
        patch, stride = self.patch_size[1], self.stride[1]
        if frames is None:
            columns, most = None, max(features.shape[2] - patch, 0) // stride + 1
        else:
            columns = (frames - patch).clamp(min=0) // stride + 1
            most = int(columns.max())
        rows, width = self.covered((self.grid[0], most))
        features = F.pad(features[:, :rows, :width], (0, max(width - features.shape[2], 0)))
        if frames is not None:  # what stands behind a clip shorter than a patch
            features = features.where(torch.arange(width, device=frames.device) < frames[:, None, None], 0)
        return features, columns

    def covered(self, grid: tuple[int, int]) -> tuple[int, int]:
        """Bins and frames that a grid of patches reaches."""
        return tuple(p + (n - 1) * s for p, n, s in zip(self.patch_size, grid, self.stride, strict=True))


def spectrogram_grid(n_mels: int, frames: int, patch_size: Pair, stride: Pair) -> tuple[int, int]:
    """Rows and columns of the patches that fit into a spectrogram."""
    rows_columns = []
    for name, size, patch, step in zip(
        ("mel bins", "frames"), (n_mels, frames), pair(patch_size), pair(stride), strict=True
    ):
        if min(patch, step) < 1 or size < max(patch, step):
            raise UserError(
                f"A spectrogram of {size} {name} cannot be cut into patches of {patch} at a stride of {step}: "
                f"choose a patch_size and a stride of 1 to {size} {name}."
            )
        rows_columns.append((size - patch) // step + 1)
    return rows_columns[0], rows_columns[1]
