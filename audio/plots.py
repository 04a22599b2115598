"""What a model hears, drawn: spectrograms with predictions, where attention goes, accuracy against noise."""

import html
from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from matplotlib.axes import Axes
from sklearn.metrics import average_precision_score
from torch import Tensor

from core.attention.maps import attention_map
from core.experiments import Panel
from core.experiments.figures import BLUE, GREY, NO_TICKS, figure
from core.objectives.masked_autoencoder import MaskedAutoencoder, unpatch
from core.objectives.patch_masking import WithMaskNoise

from .model import AST


@torch.no_grad()
def draw_spectrogram(
    axis: Axes, model: AST, clip: Float[Tensor, "samples"], title: str = "", color: str = "#334155"
) -> None:
    """The clip's features as the model takes them: time to the right in seconds, frequency upwards."""
    picture = model.eval().spectrograms(clip[None])[0][0].numpy()
    filterbank = model.filterbank
    start = (filterbank.length - filterbank.shift) / 2  # a frame stands for the middle of its samples
    ends = [n / filterbank.sample_rate for n in (start, start + picture.shape[1] * filterbank.shift)]
    low, high = np.percentile(picture, (2, 99.8))
    axis.imshow(
        picture, cmap="magma", origin="lower", aspect="auto", vmin=low, vmax=high, extent=(*ends, 0, len(picture))
    )
    axis.set_title(title, fontsize=8, color=color)
    axis.set_yticks([])
    axis.grid(False)
    axis.tick_params(labelsize=7)


def draw_overlay(axis: Axes, model: AST, clip: Float[Tensor, "samples"]) -> None:
    """The spectrogram in grey, with its attention laid over it: bright where it listens most."""
    draw_spectrogram(axis, model, clip)
    image = axis.images[0]
    image.set_cmap("gray")
    attention = spread(attention_map(model, clip[None])[0], model, image.get_array().shape)
    axis.imshow(attention, cmap="inferno", origin="lower", aspect="auto", alpha=0.6, extent=image.get_extent())


def spread(attention: Float[Tensor, "rows columns"], model: AST, size: tuple[int, int]) -> Float[Tensor, "mel frames"]:
    """Each bin and frame gets the mean over the patches that cover it (0 where none does); the peak is 1."""
    patch, stride = model.embed.patch_size, model.embed.stride
    total, count = (
        F.conv_transpose2d(values[None, None], torch.ones(1, 1, *patch), stride=stride)[0, 0]
        for values in (attention, torch.ones_like(attention))
    )
    mean = (total / count.clamp(min=1))[: size[0], : size[1]]
    return F.pad(mean, (0, size[1] - mean.shape[1], 0, size[0] - mean.shape[0])) / mean.max()


def samples_panel(
    model: AST,
    clips: Sequence[Float[Tensor, "_"]],
    targets: Sequence[str],
    guesses: Sequence[str],
    right: Sequence[bool],
) -> Panel:
    """guesses: what is written above each clip; red and beside its target where it is not right."""
    columns = 8
    rows = -(-len(clips) // columns)
    fig, axes = figure(11, 1.6 * rows, rows, columns, subplot_kw=NO_TICKS)
    for axis in axes.flat:
        axis.axis("off")
    for axis, clip, target, guess, good in zip(axes.flat, clips, targets, guesses, right, strict=False):
        title = guess if good else f"{guess}, truly {target}"
        draw_spectrogram(axis, model, clip, title, "#15803d" if good else "#dc2626")
    caption = "Test clips, the worst mistakes first, with the predicted class and its probability."
    return Panel("What it says", fig, caption, wide=True)


@torch.no_grad()
def masked_panel(model: MaskedAutoencoder, test: WithMaskNoise, count: int = 6) -> Panel:
    """Spectrograms, what was left of them, and what was made of that."""
    model.eval()
    samples = [test[i] for i in range(0, len(test), max(len(test) // count, 1))][:count]
    fig, axes = figure(11, 4.2, 3, len(samples), subplot_kw=NO_TICKS)
    embed = model.model.embed
    for column, ((clip, _), noise) in enumerate(samples):
        prediction, patches = model(clip[None], None, noise[None]), model.model.patches(clip[None])
        made = model.reconstruct(prediction, patches)
        gone = torch.full_like(patches, torch.nan).where(prediction.masked[..., None], patches)
        columns = patches.shape[1] // embed.grid[0]
        size = embed.covered((embed.grid[0], columns))
        low, high = np.percentile(patches, (2, 99.8))
        for row, shown in enumerate((patches, gone, made)):
            picture = unpatch(shown, size, embed.patch_size, embed.stride)[0, 0]
            axis = axes[row, column]
            axis.imshow(picture, cmap="magma", origin="lower", aspect="auto", vmin=low, vmax=high)
            axis.set_facecolor("#cbd5e1")
            axis.grid(False)
    caption = (
        "Test clips (time to the right, frequency upwards); below each what the encoder saw of it, and what the "
        "decoder told of the rest."
    )
    return Panel("What it fills in", fig, caption, wide=True)


def attention_panel(model: AST, clips: Sequence[Float[Tensor, "_"]]) -> Panel:
    fig, axes = figure(11, 3.2, 2, len(clips))
    for column, clip in enumerate(clips):
        draw_spectrogram(axes[0, column], model, clip)
        draw_overlay(axes[1, column], model, clip)
    caption = (
        "Below each test clip (time in seconds, frequency upwards), how much of each place reaches the decision "
        "(attention rolled out over all layers)."
    )
    return Panel("Where it listens", fig, caption, wide=True)


def levels_panel(right: Mapping[str, Bool[Tensor, "n"]], levels: Sequence[float], noises: Sequence[str]) -> Panel:
    """Accuracy against noise level, over all noises and for each.

    right: by method, whether each clip was recognised. levels, noises: of each clip.
    """
    kinds = list(dict.fromkeys(noises))
    fig, axes = figure(11, 2.8, columns=1 + len(kinds), sharey=True)
    level, noise = np.array(levels), np.array(noises)
    steps = sorted(set(levels))
    for axis, kind in zip(axes[0], [None, *kinds], strict=True):
        for (name, found), color, line in zip(right.items(), (BLUE, GREY), ("o-", "s--"), strict=False):
            among = np.ones(len(level), dtype=bool) if kind is None else noise == kind
            shares = [found.numpy()[among & (level == step)].mean() for step in steps]
            axis.plot(steps, shares, line, color=color, markersize=4, label=name)
        axis.set_title(f"{kind} noise" if kind else "all noises")
        axis.set_xlabel("tones over noise, dB")
    axes[0, 0].set_ylabel("accuracy")
    axes[0, 0].legend(frameon=False, loc="lower right")
    means = [
        ", ".join(f"{step:+g} dB {found.numpy()[level == step].mean():.1%}" for step in steps)
        for found in right.values()
    ]
    caption = "; ".join(f"{name}: {figures}" for name, figures in zip(right, means, strict=True)) + "."
    return Panel("Accuracy against noise", fig, caption, wide=True)


def per_label(targets: Float[Tensor, "n classes"], chances: Float[Tensor, "n classes"], labels: Sequence[str]) -> Panel:
    """Multi-label: each label's average precision."""
    body = ""
    for number, label in enumerate(labels):
        among = targets[:, number].numpy() > 0.5
        precision = f"{average_precision_score(among, chances[:, number].numpy()):.1%}" if among.any() else "-"
        body += f"<tr><td>{html.escape(label)}</td><td>{precision}</td><td>{among.sum()}</td></tr>"
    head = "<tr><th>label</th><th>average precision</th><th>samples</th></tr>"
    return Panel("Label by label", f"<table>{head}{body}</table>")
