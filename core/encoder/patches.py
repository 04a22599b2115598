"""Patch embedding: images, spectrograms and other grids become tokens."""

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from ..errors import UserError
from .init import init_weights, learned
from .positions import DEFAULT_RESIZE, FactorisedPositions, LearnedPositions, PositionResize, sincos_positions
from .tokens import Tokens

Pair = int | tuple[int, int]


def pair(value: Pair) -> tuple[int, int]:
    """(rows, columns); one number stands for both."""
    return (value, value) if isinstance(value, int) else value


def patch_grid(image_size: Pair, patch_size: Pair, stride: Pair | None = None) -> tuple[int, int]:
    """Rows and columns of patches that cover an image exactly."""
    rows_columns = []
    strides = pair(patch_size if stride is None else stride)
    for side, size, patch, step in zip(("high", "wide"), pair(image_size), pair(patch_size), strides, strict=True):
        if min(size, patch, step) < 1:
            raise UserError(f"Image size, patch size and stride must be at least 1, not {size}, {patch} and {step}.")
        if size < patch or (size - patch) % step:
            below = patch + (size - patch) // step * step
            choices = [str(choice) for choice in (below, below + step) if choice >= patch] or [str(patch)]
            raise UserError(
                f"An image {size} pixels {side} cannot be cut into patches of {patch} at a stride of {step}: "
                f"choose {' or '.join(choices)} pixels (set the image size, patch size or stride)."
            )
        rows_columns.append((size - patch) // step + 1)
    return rows_columns[0], rows_columns[1]


class PatchEmbedding(nn.Module):
    """Cut an image into (overlapping) patches, project each, add positions; class and register tokens come first.

    image_size: the size that positions are learned for; images of other sizes get resized positions.
    positions: "learned", "factorised" (learned for rows and columns), "sincos" (fixed) or "none" (rotary positions live
        in the encoder).
    position_grid: the grid that positions are learned for, if it is not that of image_size.
    position_resize: how learned positions are interpolated for other grids.
    prefix_positions: whether class and register tokens have a learned position too.
    crop: images smaller than image_size take the first rows and columns of its positions, instead of resized ones.
    """

    def __init__(
        self,
        dim: int,
        *,
        image_size: Pair,
        patch_size: Pair,
        stride: Pair | None = None,
        channels: int = 3,
        class_token: bool = True,
        registers: int = 0,
        positions: str = "learned",
        prefix_positions: bool = True,
        crop: bool = False,
        position_grid: tuple[int, int] | None = None,
        position_resize: PositionResize = DEFAULT_RESIZE,
        bias: bool = True,
        dropout: float = 0.0,
    ):
        super().__init__()
        self.patch_size, self.stride = pair(patch_size), pair(patch_size if stride is None else stride)
        grid = patch_grid(image_size, self.patch_size, self.stride)
        self.projection = nn.Conv2d(channels, dim, self.patch_size, self.stride, bias=bias)
        self.class_token = learned(1, 1, dim) if class_token else None
        self.registers = learned(1, registers, dim) if registers else None
        self.prefix = int(class_token) + registers
        self.prefix_positions = prefix_positions and positions == "learned"
        self.positions = None
        if positions == "learned":
            prefix = self.prefix if self.prefix_positions else 0
            self.positions = LearnedPositions(dim, position_grid or grid, prefix, crop, position_resize)
        elif positions == "factorised":
            self.positions = FactorisedPositions(dim, position_grid or grid, position_resize)
        self.sincos = positions == "sincos"
        self.dropout = nn.Dropout(dropout)
        init_weights(self)

    def forward(self, images: Float[Tensor, "b c h w"]) -> Tokens:
        if images.shape[1] != self.projection.in_channels:
            raise UserError(f"Images of {images.shape[1]} channels, but the model takes {self.projection.in_channels}.")
        grid = patch_grid((images.shape[2], images.shape[3]), self.patch_size, self.stride)
        x = rearrange(self.projection(images), "b d r c -> b (r c) d")
        prefix = [token.expand(x.shape[0], -1, -1) for token in (self.class_token, self.registers) if token is not None]
        if self.prefix_positions:
            assert self.positions is not None
            x = torch.cat([*prefix, x], dim=1) + self.positions(grid)
        else:
            if self.positions is not None:
                x = x + self.positions(grid)
            elif self.sincos:
                x = x + sincos_positions(x.shape[-1], grid).to(x)
            x = torch.cat([*prefix, x], dim=1)
        return Tokens(self.dropout(x), grid=grid, prefix=self.prefix)
