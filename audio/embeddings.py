"""Spectrograms of any lengths are cut into patches and embedded."""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from core import LearnedPositions, Pair, PatchEmbedding, Tokens, UserError, pair
from core.attention.packing import Packing
from core.encoder.positions import sincos_positions


class SpectrogramEmbedding(nn.Module):
    """A class token and registers (AST's distillation token), then (overlapping) patches of a spectrogram (Gong et al.
    2021, section 2.2).

    Rows of patches are frequency, columns are time. Bins and frames that fill no whole patch are left out. A clip has
    as many columns as whole patches fit into its frames, but at least one; later columns are padding.
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
        class_token: bool = True,
        registers: int = 1,
        stem: Sequence[int] = (),
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
            class_token=class_token,
            registers=registers,
            positions=positions,
            crop=True,
            stem=stem,
            dropout=dropout,
        )

    def forward(self, spectrograms: Float[Tensor, "b mel frames"], frames: Int[Tensor, "b"] | None = None) -> Tokens:
        """frames: the number that each clip has; None: all frames."""
        spectrograms, columns = self.cut(spectrograms, frames)
        tokens = self.patches(spectrograms[:, None], None if columns is None else columns * self.stride[1])
        if columns is None or bool((columns == tokens.grid[1]).all()):
            return tokens
        real = torch.arange(tokens.grid[1], device=columns.device) < columns[:, None]
        mask = F.pad(repeat(real, "b c -> b (r c)", r=self.grid[0]), (tokens.prefix, 0), value=True)
        return Tokens(tokens.x, mask=mask, grid=tokens.grid, prefix=tokens.prefix)

    def cut(
        self, spectrograms: Float[Tensor, "b mel frames"], frames: Int[Tensor, "b"] | None = None
    ) -> tuple[Float[Tensor, "b rows columns"], Int[Tensor, "b"] | None]:
        """The part that patches cover, 0 after each clip's end; and each clip's columns of patches (None: all)."""
        patch, stride = self.patch_size[1], self.stride[1]
        if frames is None:
            columns, most = None, max(spectrograms.shape[2] - patch, 0) // stride + 1
        else:
            columns = self.columns(frames)
            most = int(columns.max())
        rows, width = self.covered((self.grid[0], most))
        spectrograms = F.pad(spectrograms[:, :rows, :width], (0, max(width - spectrograms.shape[2], 0)))
        if frames is not None:  # a clip shorter than a patch is followed by zeros
            spectrograms = spectrograms.where(torch.arange(width, device=frames.device) < frames[:, None, None], 0)
        return spectrograms, columns

    def row(self, spectrograms: Float[Tensor, "mel frames"], frames: Int[Tensor, "clips"]) -> Tokens:
        """Clips of any lengths, one behind the other, as a packed row without padding.

        frames: the number that each clip has, on the CPU.
        """
        embed, places = self.patches, self.places(frames)
        device, x = spectrograms.device, self._projected_row(spectrograms, frames)
        prefix = torch.cat([x.new_empty(0, x.shape[1]), *(token[0] for token in embed.prefix_tokens)])
        table, most = None, int(places.places[:, 3].max())
        if embed.positions is not None:
            most, widest = self.grid[1], most
            if widest > most:
                raise UserError(f"A grid of {self.grid[0]} x {widest}, but there are positions for only {self.grid}.")
            assert isinstance(embed.positions, LearnedPositions)
            before, table = embed.positions.weight.tensor_split([embed.positions.prefix])
            prefix = prefix + before
        elif embed.sincos:
            table = sincos_positions(x.shape[1], (self.grid[0], most)).to(x)
        if table is not None:
            at = places.tokens()
            x = x + F.embedding((at.row * most + at.column).to(device), table)
        packing = Packing(places.places + torch.tensor([embed.prefix, embed.prefix, 0, 0]))
        in_body = packing.tokens().in_body
        row = x.new_empty(packing.total, x.shape[1], dtype=torch.promote_types(x.dtype, prefix.dtype))
        for part, where in ((x, in_body), (prefix.repeat(len(frames), 1), ~in_body)):
            row = row.index_copy(0, where.nonzero()[:, 0].to(device), part.to(row.dtype))
        return Tokens(embed.dropout(row[None]), packing=packing)

    def _projected_row(
        self, spectrograms: Float[Tensor, "mel frames"], frames: Int[Tensor, "clips"]
    ) -> Float[Tensor, "n d"]:
        embed = self.patches
        if embed.stem is None:
            projection = embed.projection
            return F.linear(self.cut_row(spectrograms, frames), projection.weight.flatten(1), projection.bias)
        # Convolutions see the frames around a patch, so clips lie side by side for them.
        clips = pad_sequence([*spectrograms.mT.split(frames.tolist())], batch_first=True).mT
        clips, columns = self.cut(clips, frames.to(clips.device))
        assert columns is not None
        x = rearrange(embed.projected(clips[:, None], columns * self.stride[1]), "b d r c -> b r c d")
        real = torch.arange(x.shape[2], device=x.device) < columns[:, None, None]
        return x[real.expand(-1, x.shape[1], -1)]

    def cut_row(self, spectrograms: Float[Tensor, "mel frames"], frames: Int[Tensor, "clips"]) -> Float[Tensor, "n p"]:
        """The patches of clips one behind the other, those of a clip cut from its own frames alone."""
        device, at = spectrograms.device, self.places(frames).tokens()
        length, stride = self.patch_size[1], self.stride[1]
        starts = (frames.cumsum(0) - frames)[at.sequence] + stride * at.column
        # Only a clip shorter than a patch reaches beyond its frames: there it has zeros.
        spectrograms = F.pad(spectrograms, (0, max(length - int(frames[-1]), 0)))
        patches = spectrograms.unfold(0, self.patch_size[0], self.stride[0]).unfold(1, length, 1)
        patches = patches[at.row.to(device), starts.to(device)]
        if int(frames.min()) < length:
            outside = torch.arange(length) >= frames[at.sequence, None]
            patches = patches.masked_fill(outside[:, None].to(device), 0)
        return patches.flatten(1)

    def places(self, frames: Int[Tensor, "clips"]) -> Packing:
        """Where the patches of clips lie in a row of them, without prefix tokens."""
        columns = self.columns(frames)
        rows = torch.full_like(columns, self.grid[0])
        return Packing(torch.stack([rows * columns, torch.zeros_like(rows), rows, columns], dim=1))

    def columns(self, frames: Int[Tensor, "b"]) -> Int[Tensor, "b"]:
        """Columns of patches of clips of so many frames."""
        return (frames - self.patch_size[1]).clamp(min=0) // self.stride[1] + 1

    def covered(self, grid: tuple[int, int]) -> tuple[int, int]:
        """Bins and frames that a grid of patches covers."""
        rows, columns = (p + (n - 1) * s for p, n, s in zip(self.patch_size, grid, self.stride, strict=True))
        return rows, columns


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
