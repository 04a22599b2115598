"""Patch embedding: images, spectrograms and other grids become tokens."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..attention.module import Norm
from ..attention.packing import Packing, Place
from ..errors import UserError
from .init import init_weights, learned
from .positions import DEFAULT_RESIZE, FactorisedPositions, LearnedPositions, PositionResize, sincos_positions
from .stem import ConvolutionalStem, StemNorm
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
    stem, stem_norm: widths of the convolutions, and norm, of a `ConvolutionalStem` before the projection.
    prefix_positions: whether class and register tokens have a learned position too.
    norm: makes the norm of the projected patches (AIMv2), or None.
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
        norm: Norm | None = None,
        stem: Sequence[int] = (),
        stem_norm: StemNorm = "layer",
        dropout: float = 0.0,
    ):
        super().__init__()
        self.channels = channels
        self.patch_size, self.stride = pair(patch_size), pair(patch_size if stride is None else stride)
        grid = patch_grid(image_size, self.patch_size, self.stride)
        if stem and self.stride != self.patch_size:
            raise UserError("A convolutional stem is for patches that do not overlap: leave out the stride.")
        self.stem = ConvolutionalStem(channels, stem, self.patch_size, stem_norm) if stem else None
        width, kernel, step = channels, self.patch_size, self.stride
        if self.stem is not None:
            width, kernel = stem[-1], self.stem.patch_size
            step = kernel
        self.projection = nn.Conv2d(width, dim, kernel, step, bias=bias)
        self.norm = norm(dim) if norm else nn.Identity()
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

    def forward(
        self,
        images: Float[Tensor, "b c h w"] | Sequence[Float[Tensor, "c _h _w"]],
        widths: Int[Tensor, "b"] | None = None,
    ) -> Tokens:
        """images: a batch, or a list of images of any sizes, which become sequences in one row.

        widths: the pixels of each image of a batch before its padding, for a stem; None: there is no padding.
        """
        if not isinstance(images, Tensor):
            return self._row(images)
        if images.shape[1] != self.channels:
            raise UserError(f"Images of {images.shape[1]} channels, but the model takes {self.channels}.")
        grid = patch_grid((images.shape[2], images.shape[3]), self.patch_size, self.stride)
        x = self.norm(rearrange(self.projected(images, widths), "b d r c -> b (r c) d"))
        prefix = [token.expand(x.shape[0], -1, -1) for token in self.prefix_tokens]
        if self.prefix_positions:
            x = self._positioned(torch.cat([*prefix, x], dim=1), [grid])
        else:
            x = torch.cat([*prefix, self._positioned(x, [grid])], dim=1)
        return Tokens(self.dropout(x), grid=grid, prefix=self.prefix)

    def _row(self, images: Sequence[Float[Tensor, "c _h _w"]]) -> Tokens:
        if self.stem is None:
            grids, patches = self.cut(images)
            x = F.linear(patches, self.projection.weight.flatten(1), self.projection.bias)
        else:
            grids = self._grids(images)
            if self.training and self.stem.norm == "batch":
                raise UserError(
                    "A convolutional stem with batch norm cannot learn from images of different sizes: choose the norm "
                    "of a layer (--model.stem-norm layer)."
                )
            x = torch.cat([rearrange(self.projected(image[None]), "1 d r c -> (r c) d") for image in images])
        x = self.norm(x)
        prefix = [token[0] for token in self.prefix_tokens]

        def with_prefix(x: Float[Tensor, "m d"]) -> Float[Tensor, "n d"]:
            parts = x.split([rows * columns for rows, columns in grids])
            return torch.cat([t for part in parts for t in (*prefix, part)]) if prefix else x

        x = (
            self._positioned(with_prefix(x), grids)
            if self.prefix_positions
            else with_prefix(self._positioned(x, grids))
        )
        places = [Place(self.prefix + rows * columns, self.prefix, (rows, columns)) for rows, columns in grids]
        return Tokens(self.dropout(x)[None], packing=Packing.of(places))

    def cut(self, images: Sequence[Float[Tensor, "c _h _w"]]) -> tuple[list[tuple[int, int]], Float[Tensor, "n p"]]:
        """The grid of each image, and the values of all patches, those of one image behind those of the other."""
        grids = self._grids(images)
        if self.stride == self.patch_size:
            rows, columns = self.patch_size
            cut = "c (r p) (q s) -> (r q) (c p s)"
            return grids, torch.cat([rearrange(image, cut, p=rows, s=columns) for image in images])
        return grids, torch.cat([F.unfold(image[None], self.patch_size, stride=self.stride)[0].mT for image in images])

    def projected(
        self, images: Float[Tensor, "b c h w"], widths: Int[Tensor, "b"] | None = None
    ) -> Float[Tensor, "b d r q"]:
        """The patches as they are projected, without positions. widths: see `forward`."""
        return self.projection(images if self.stem is None else self.stem(images, widths))

    def _grids(self, images: Sequence[Float[Tensor, "c _h _w"]]) -> list[tuple[int, int]]:
        grids = [self._grid(number, image) for number, image in enumerate(images)]
        if not grids:
            raise UserError("The list of images is empty: give at least one.")
        return grids

    def _grid(self, number: int, image: Float[Tensor, "c _h _w"]) -> tuple[int, int]:
        """Of an image of a list."""
        if image.ndim != 3:
            shape = tuple(image.shape)
            raise UserError(
                f"Image {number} of the list must have channels, rows and columns, but its shape is {shape}."
            )
        channels, rows, columns = image.shape
        if channels != self.channels:
            raise UserError(f"Image {number} of the list has {channels} channels, but the model takes {self.channels}.")
        try:
            return patch_grid((rows, columns), self.patch_size, self.stride)
        except UserError as error:
            raise UserError(f"Image {number} of the list: {error}") from None

    @property
    def prefix_tokens(self) -> list[Float[Tensor, "1 k d"]]:
        """Class and register tokens."""
        return [token for token in (self.class_token, self.registers) if token is not None]

    def _positioned(self, x: Float[Tensor, "*b n d"], grids: Sequence[tuple[int, int]]) -> Float[Tensor, "*b n d"]:
        """Tokens with the positions of each grid added, one grid behind the other."""
        if self.positions is None and not self.sincos:
            return x
        if len(grids) == 1:  # in a graph a grid may be of symbols, which are no keys
            return x + self._table(grids[0], x)
        tables = {grid: self._table(grid, x) for grid in dict.fromkeys(grids)}
        return x + torch.cat([tables[grid] for grid in grids])

    def _table(self, grid: tuple[int, int], like: Float[Tensor, "*b n d"]) -> Float[Tensor, "m d"]:
        if self.positions is not None:
            return self.positions(grid)
        return sincos_positions(like.shape[-1], grid).to(like)
