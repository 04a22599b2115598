"""The convolutional stem: a few convolutions in place of a single projection of each patch."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..errors import UserError

StemNorm = Literal["batch", "layer"]


class ConvolutionalStem(nn.Module):
    """Convolutions of 3 x 3 pixels, each followed by a norm and GELU (early convolutions, Xiao et al. 2021, section 3).

    It costs about as much as a layer or two, and a small vision transformer learns much faster with it.

    widths: of the convolutions. Each that is wider than the one before it, and the first one, halves the image, so that
        the patch size must be a multiple of 2 for each of them.
    patch_size: of the whole embedding, in pixels.
    norm: "batch", as in the paper, which learns fastest; or "layer", of the channels of each position, with which an
        image's tokens do not depend on the other images of its batch.
    """

    def __init__(self, channels: int, widths: Sequence[int], patch_size: tuple[int, int], norm: StemNorm = "layer"):
        super().__init__()
        steps = [2] + [2 if wide > narrow else 1 for narrow, wide in pairwise(widths)]
        halving = 2 ** steps.count(2)
        if any(side % halving for side in patch_size):
            size = "x".join(map(str, patch_size))
            raise UserError(
                f"A convolutional stem of widths {', '.join(map(str, widths))} halves images {steps.count(2)} times, "
                f"but the patch size {size} is no multiple of {halving}: choose another patch size, or fewer widths "
                "that grow."
            )
        self.norm: StemNorm = norm
        self.steps = tuple(steps)
        self.patch_size = (patch_size[0] // halving, patch_size[1] // halving)
        """Of what is left to project, in positions of the stem's output."""
        norms = {"batch": nn.BatchNorm2d, "layer": ChannelNorm}
        before = (channels, *widths)
        self.layers = nn.Sequential(
            *(
                nn.Sequential(nn.Conv2d(taken, made, 3, step, padding=1, bias=False), norms[norm](made), nn.GELU())
                for taken, made, step in zip(before, widths, steps, strict=False)
            )
        )

    def forward(
        self, images: Float[Tensor, "b c h w"], widths: Int[Tensor, "b"] | None = None
    ) -> Float[Tensor, "b d r q"]:
        """widths: the pixels before the padding in each image's rows, in whole patches; None: there is no padding.
        Every convolution sees zeros in its place, as beyond the edge of an image."""
        if widths is None:
            return self.layers(images)
        x = _without_padding(images, widths)
        for layer, step in zip(self.layers, self.steps, strict=True):
            widths = widths // step
            x = _without_padding(layer(x), widths)
        return x


def _without_padding(x: Float[Tensor, "b c h w"], widths: Int[Tensor, "b"]) -> Float[Tensor, "b c h w"]:
    return x.where(torch.arange(x.shape[3], device=x.device) < widths[:, None, None, None], 0)


class ChannelNorm(nn.LayerNorm):
    """Layer norm of the channels of each position of an image."""

    def forward(self, input: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        return rearrange(super().forward(rearrange(input, "b c h w -> b h w c")), "b h w c -> b c h w")
