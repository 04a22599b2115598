"""Plots of images: predictions, masked patches, and attention."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from matplotlib.axes import Axes
from torch import Tensor

from core.attention.maps import attention_map
from core.experiments import Panel
from core.experiments.features import nearest_before_and_after
from core.experiments.figures import CORRECT, NO_TICKS, TEXT, WRONG, figure
from core.objectives.masked_autoencoder import MaskedAutoencoder, unpatch
from core.objectives.patch_masking import WithMaskNoise

from .model import Preprocess, ViT

NEIGHBOURS = {"width_ratios": [1, 0.25, 1, 1, 1, 1, 0.25, 1, 1, 1, 1]}  # of an image, and of four twice


def to_pixels(image: Float[Tensor, "c h w"], preprocess: Preprocess) -> np.ndarray:
    """The image without its normalisation, as an array "h w 3" or "h w" of values from 0 to 1."""
    mean, std = (torch.tensor(value).view(-1, 1, 1) for value in (preprocess.mean, preprocess.std))
    pixels = (image * std + mean).clamp(0, 1)
    return pixels[0].numpy() if len(pixels) == 1 else pixels[:3].permute(1, 2, 0).numpy()


def draw_image(axis: Axes, pixels: np.ndarray, title: str = "", color: str = TEXT) -> None:
    axis.imshow(pixels, cmap="gray", vmin=0, vmax=1)
    axis.set_title(title, fontsize=8, color=color)
    axis.axis("off")


def draw_overlay(axis: Axes, pixels: np.ndarray, attention: Float[Tensor, "rows columns"]) -> None:
    """The image, dimmed, under its attention map, which is bright where the attention is large."""
    rows, columns = pixels.shape[:2]
    draw_image(axis, pixels)
    whole = (-0.5, columns - 0.5, rows - 0.5, -0.5)
    axis.imshow(attention, cmap="inferno", alpha=0.65, extent=whole, interpolation="bicubic")


def predictions_panel(
    images: Sequence[Float[Tensor, "c _h _w"]],
    named: Sequence[tuple[str, str]],
    correct: Sequence[bool],
    preprocess: Preprocess,
    title: str = "Predictions",
    caption: str = "Test images with the predicted class and its probability. The worst mistakes come first.",
) -> Panel:
    """named: what is predicted of each image, and what was to be."""
    columns = 8
    rows = -(-len(images) // columns)
    fig, axes = figure(11, 1.6 * rows, rows, columns, subplot_kw=NO_TICKS)
    for axis in axes.flat:
        axis.axis("off")
    for axis, image, (predicted, target), right in zip(axes.flat, images, named, correct, strict=False):
        above = predicted if right else f"{predicted} (target: {target})"
        draw_image(axis, to_pixels(image, preprocess), above, CORRECT if right else WRONG)
    return Panel(title, fig, caption, wide=True)


@torch.no_grad()
def masked_panel(model: MaskedAutoencoder, test: WithMaskNoise, count: int = 12) -> Panel:
    """Test images, the patches that are not masked, and the reconstructions."""
    model.eval()
    vit = model.model
    assert isinstance(vit, ViT)
    samples = [test[i] for i in range(0, len(test), max(len(test) // count, 1))][:count]
    embed = vit.embed
    fig, axes = figure(11, 3.2, 3, len(samples), subplot_kw=NO_TICKS)
    for column, ((image, _), noise) in enumerate(samples):
        prediction, patches = model(image[None], noise[None]), vit.patches(image[None])
        visible = torch.full_like(patches, torch.nan).where(prediction.masked[..., None], patches)
        for row, shown in enumerate((patches, visible, model.reconstruct(prediction, patches))):
            axis, size = axes[row, column], (image.shape[1], image.shape[2])
            draw_image(axis, to_pixels(unpatch(shown, size, embed.patch_size, embed.stride)[0], vit.config.preprocess))
            axis.set_facecolor("#cbd5e1")
            axis.axis("on")
            axis.grid(False)
    caption = "Test images; below each the patches that the encoder sees, and the reconstruction of the masked patches."
    return Panel("Masked patches", fig, caption, wide=True)


def attention_panel(model: ViT, images: Sequence[Float[Tensor, "c _h _w"]]) -> Panel:
    maps = attention_map(model, images)
    fig, axes = figure(11, 2.9, 2, len(images), subplot_kw=NO_TICKS)
    for column, (image, attention) in enumerate(zip(images, maps, strict=True)):
        pixels = to_pixels(image, model.config.preprocess)
        draw_image(axes[0, column], pixels)
        draw_overlay(axes[1, column], pixels, attention)
    caption = "Test images; below each the attention of the model (attention rollout over all layers)."
    return Panel("Attention", fig, caption, wide=True)


def neighbours_panel(
    images: Sequence[Float[Tensor, "c _h _w"]],
    before: Float[np.ndarray, "n d"],
    after: Float[np.ndarray, "n e"],
    preprocess: Preprocess,
    queries: int = 6,
) -> Panel:
    """Some images, and those nearest to each. before, after: the features of all images at the start and at the end."""
    found = nearest_before_and_after(before, after, queries)
    fig, axes = figure(11, 1.15 * len(found) + 0.3, len(found), 11, subplot_kw=NO_TICKS, gridspec_kw=NEIGHBOURS)
    for axis in axes.flat:
        axis.axis("off")
    for row, (query, *neighbours) in zip(axes, found, strict=True):
        draw_image(row[0], to_pixels(images[query], preprocess))
        for first, numbers in zip((2, 7), neighbours, strict=True):
            for axis, number in zip(row[first:], numbers, strict=False):
                draw_image(axis, to_pixels(images[number], preprocess))
    for column, title in ((0, "image"), (2, "nearest before training"), (7, "nearest after training")):
        axes[0, column].set_title(title, fontsize=8, color=TEXT, loc="left")
    caption = (
        f"Validation images, and the nearest to each among {len(images):,} by the angle between the features, before "
        "and after training."
    )
    return Panel("Neighbours", fig, caption, wide=True)
