"""What a model sees, drawn: samples with predictions, and where attention goes."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from matplotlib.axes import Axes
from torch import Tensor

from core.attention.maps import attention_map
from core.experiments import Panel
from core.experiments.figures import NO_TICKS, figure
from core.objectives.masked_autoencoder import MaskedAutoencoder, unpatch
from core.objectives.patch_masking import WithMaskNoise

from .model import Preprocess, ViT


def to_picture(image: Float[Tensor, "c h w"], preprocess: Preprocess) -> np.ndarray:
    """Undo the normalisation: an array "h w 3" or "h w" from 0 to 1."""
    mean, std = (torch.tensor(value).view(-1, 1, 1) for value in (preprocess.mean, preprocess.std))
    picture = (image * std + mean).clamp(0, 1)
    return picture[0].numpy() if len(picture) == 1 else picture[:3].permute(1, 2, 0).numpy()


def draw_image(axis: Axes, picture: np.ndarray, title: str = "", color: str = "#334155") -> None:
    axis.imshow(picture, cmap="gray", vmin=0, vmax=1)
    axis.set_title(title, fontsize=8, color=color)
    axis.axis("off")


def draw_overlay(axis: Axes, picture: np.ndarray, attention: Float[Tensor, "rows columns"]) -> None:
    """The image, dimmed, with its attention laid over it: bright where it looks most."""
    rows, columns = picture.shape[:2]
    draw_image(axis, picture)
    whole = (-0.5, columns - 0.5, rows - 0.5, -0.5)
    axis.imshow(attention, cmap="inferno", alpha=0.65, extent=whole, interpolation="bicubic")


def samples_panel(
    images: Sequence[Float[Tensor, "c h w"]],
    targets: Sequence[int],
    probabilities: Float[Tensor, "n classes"],
    labels: Sequence[str],
    preprocess: Preprocess,
) -> Panel:
    columns = 8
    rows = -(-len(images) // columns)
    fig, axes = figure(11, 1.6 * rows, rows, columns, subplot_kw=NO_TICKS)
    for axis in axes.flat:
        axis.axis("off")
    for axis, image, target, chances in zip(axes.flat, images, targets, probabilities, strict=False):
        guess = int(chances.argmax())
        title = f"{labels[guess]}  {chances[guess]:.0%}"
        if guess != target:
            title = f"{labels[guess]} {chances[guess]:.0%}, truly {labels[target]}"
        draw_image(axis, to_picture(image, preprocess), title, "#15803d" if guess == target else "#dc2626")
    caption = "Test images, the worst mistakes first, with the predicted class and its probability."
    return Panel("What it says", fig, caption, wide=True)


@torch.no_grad()
def masked_panel(model: MaskedAutoencoder, test: WithMaskNoise, count: int = 12) -> Panel:
    """Images, what was left of them, and what was made of that."""
    model.eval()
    samples = [test[i] for i in range(0, len(test), max(len(test) // count, 1))][:count]
    images, noise = torch.stack([image for (image, _), _ in samples]), torch.stack([noise for _, noise in samples])
    prediction, patches = model(images, noise), model.model.patches(images)
    made = model.reconstruct(prediction, patches)
    gone = torch.full_like(patches, torch.nan).where(prediction.masked[..., None], patches)
    embed, preprocess = model.model.embed, model.model.config.preprocess
    fig, axes = figure(11, 3.2, 3, len(samples), subplot_kw=NO_TICKS)
    for row, shown in enumerate((patches, gone, made)):
        whole = unpatch(shown, images.shape[2:], embed.patch_size, embed.stride)
        for axis, image in zip(axes[row], whole, strict=True):
            draw_image(axis, to_picture(image, preprocess))
            axis.set_facecolor("#cbd5e1")
            axis.axis("on")
            axis.grid(False)
    caption = "Test images; below each what the encoder saw of it, and what the decoder told of the rest."
    return Panel("What it fills in", fig, caption, wide=True)


def attention_panel(model: ViT, images: Float[Tensor, "b c h w"]) -> Panel:
    maps = attention_map(model, images)
    fig, axes = figure(11, 2.9, 2, len(images), subplot_kw=NO_TICKS)
    for column, (image, attention) in enumerate(zip(images, maps, strict=True)):
        picture = to_picture(image, model.config.preprocess)
        draw_image(axes[0, column], picture)
        draw_overlay(axes[1, column], picture, attention)
    caption = (
        "Below each test image, how much of each place reaches the decision (attention rolled out over all layers)."
    )
    return Panel("Where it looks", fig, caption, wide=True)
