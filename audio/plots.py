"""Plots of audio: spectrograms with predictions, masked patches, attention, and accuracy against noise."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from matplotlib.axes import Axes
from torch import Tensor

from core.attention.maps import attention_map
from core.experiments import Panel
from core.experiments.features import nearest_before_and_after
from core.experiments.figures import BLUE, CORRECT, GREY, NO_TICKS, TEXT, WRONG, figure
from core.objectives.masked_autoencoder import MaskedAutoencoder, unpatch
from core.objectives.patch_masking import WithMaskNoise

from .embeddings import SpectrogramEmbedding
from .features import FeatureConfig, Filterbank
from .model import AST
from .waveform import WaveformModel
from .whisper import WhisperFilterbank

BINS = 64  # of the spectrogram of a clip whose model makes none

NEIGHBOURS = {"width_ratios": [1, 0.25, 1, 1, 1, 1, 0.25, 1, 1, 1, 1]}  # of a clip, and of four twice


@torch.no_grad()
def spectrogram(
    model: AST | WaveformModel, clip: Float[Tensor, "samples"]
) -> tuple[Float[np.ndarray, "mel frames"], float, float]:
    """The clip's features, as the model uses them if it does, and the times in seconds of their first and last edge: a
    frame is at the middle of its samples."""
    if isinstance(model, AST):
        image, filterbank = model.eval().spectrograms(clip[None])[0][0].numpy(), model.filterbank
    else:
        filterbank = Filterbank(FeatureConfig(), model.config.sample_rate, BINS)
        image = filterbank(clip[None], torch.tensor([len(clip)]))[0][0].numpy()
    rate, centred = filterbank.sample_rate, isinstance(filterbank, WhisperFilterbank)
    start = (-filterbank.shift if centred else filterbank.length - filterbank.shift) / 2 / rate
    return image, start, start + image.shape[1] * filterbank.shift / rate


def draw_spectrogram(
    axis: Axes, model: AST | WaveformModel, clip: Float[Tensor, "samples"], title: str = "", color: str = TEXT
) -> None:
    """The features of a clip: time in seconds to the right, frequency upwards."""
    image, start, end = spectrogram(model, clip)
    low, high = np.percentile(image, (2, 99.8))
    axis.imshow(
        image, cmap="magma", origin="lower", aspect="auto", vmin=low, vmax=high, extent=(start, end, 0, len(image))
    )
    axis.set_title(title, fontsize=8, color=color)
    axis.set_yticks([])
    axis.grid(False)
    axis.tick_params(labelsize=7)


def draw_overlay(axis: Axes, model: AST | WaveformModel, clip: Float[Tensor, "samples"]) -> None:
    """The spectrogram in grey, under its attention map, which is bright where the attention is large."""
    draw_spectrogram(axis, model, clip)
    image = axis.images[0]
    image.set_cmap("gray")
    attention = spread(attention_map(model, clip[None])[0], model, image.get_size())
    axis.imshow(attention, cmap="inferno", origin="lower", aspect="auto", alpha=0.6, extent=image.get_extent())


def spread(
    attention: Float[Tensor, "rows columns"], model: AST | WaveformModel, size: tuple[int, int]
) -> Float[Tensor, "mel frames"]:
    """For each bin and frame the mean over the patches that cover it (0 where none does). The maximum is 1."""
    if isinstance(model, WaveformModel):  # its tokens are moments, at all frequencies
        return F.interpolate(attention[None], size=size[1], mode="linear")[0].expand(size[0], -1)
    patch, stride = model.embed.patch_size, model.embed.stride
    total, count = (
        F.conv_transpose2d(values[None, None], torch.ones(1, 1, *patch), stride=stride)[0, 0]
        for values in (attention, torch.ones_like(attention))
    )
    mean = (total / count.clamp(min=1))[: size[0], : size[1]]
    return F.pad(mean, (0, size[1] - mean.shape[1], 0, size[0] - mean.shape[0])) / mean.max()


def predictions_panel(
    model: AST | WaveformModel,
    clips: Sequence[Float[Tensor, "_"]],
    targets: Sequence[str],
    predictions: Sequence[str],
    correct: Sequence[bool],
) -> Panel:
    """predictions: the text above each clip. A wrong one is red and followed by the target."""
    columns = 8
    rows = -(-len(clips) // columns)
    fig, axes = figure(11, 1.6 * rows, rows, columns, subplot_kw=NO_TICKS)
    for axis in axes.flat:
        axis.axis("off")
    for axis, clip, target, predicted, is_correct in zip(axes.flat, clips, targets, predictions, correct, strict=False):
        title, color = (predicted, CORRECT) if is_correct else (f"{predicted} (target: {target})", WRONG)
        draw_spectrogram(axis, model, clip, title, color)
    caption = "Test clips with the predicted class and its probability. The worst mistakes come first."
    return Panel("Predictions", fig, caption, wide=True)


@torch.no_grad()
def masked_panel(model: MaskedAutoencoder, test: WithMaskNoise, count: int = 6) -> Panel:
    """Spectrograms of test clips, the patches that are not masked, and the reconstructions."""
    model.eval()
    samples = [test[i] for i in range(0, len(test), max(len(test) // count, 1))][:count]
    fig, axes = figure(11, 4.2, 3, len(samples), subplot_kw=NO_TICKS)
    ast = model.model
    assert isinstance(ast, AST) and isinstance(ast.embed, SpectrogramEmbedding)
    embed = ast.embed
    for column, ((clip, _), noise) in enumerate(samples):
        prediction, patches = model(clip[None], None, noise[None]), ast.patches(clip[None])
        reconstructed = model.reconstruct(prediction, patches)
        visible = torch.full_like(patches, torch.nan).where(prediction.masked[..., None], patches)
        columns = patches.shape[1] // embed.grid[0]
        size = embed.covered((embed.grid[0], columns))
        low, high = np.percentile(patches, (2, 99.8))
        for row, shown in enumerate((patches, visible, reconstructed)):
            image = unpatch(shown, size, embed.patch_size, embed.stride)[0, 0]
            axis = axes[row, column]
            axis.imshow(image, cmap="magma", origin="lower", aspect="auto", vmin=low, vmax=high)
            axis.set_facecolor("#cbd5e1")
            axis.grid(False)
    caption = (
        "Test clips (time to the right, frequency upwards); below each the patches that the encoder sees, and the "
        "reconstruction of the masked patches."
    )
    return Panel("Masked patches", fig, caption, wide=True)


def attention_panel(model: AST | WaveformModel, clips: Sequence[Float[Tensor, "_"]]) -> Panel:
    fig, axes = figure(11, 3.2, 2, len(clips))
    for column, clip in enumerate(clips):
        draw_spectrogram(axes[0, column], model, clip)
        draw_overlay(axes[1, column], model, clip)
    caption = (
        "Test clips (time in seconds to the right, frequency upwards); below each the attention of the model "
        "(attention rollout over all layers)."
    )
    return Panel("Attention", fig, caption, wide=True)


def levels_panel(correct: Mapping[str, Bool[Tensor, "n"]], levels: Sequence[float], noises: Sequence[str]) -> Panel:
    """Accuracy against the noise level, for all kinds of noise together and for each kind.

    correct: for each method, whether its prediction of each clip is correct. levels, noises: those of each clip.
    """
    kinds = list(dict.fromkeys(noises))
    fig, axes = figure(11, 2.8, columns=1 + len(kinds), sharey=True)
    level, noise = np.array(levels), np.array(noises)
    steps = sorted(set(levels))
    for axis, kind in zip(axes[0], [None, *kinds], strict=True):
        for (name, found), color, line in zip(correct.items(), (BLUE, GREY), ("o-", "s--"), strict=False):
            among = np.ones(len(level), dtype=bool) if kind is None else noise == kind
            accuracies = [found.numpy()[among & (level == step)].mean() for step in steps]
            axis.plot(steps, accuracies, line, color=color, markersize=4, label=name)
        axis.set_title(f"{kind} noise" if kind else "all kinds of noise")
        axis.set_xlabel("signal-to-noise ratio, dB")
    axes[0, 0].set_ylabel("accuracy")
    axes[0, 0].legend(frameon=False, loc="lower right")
    means = [
        ", ".join(f"{step:+g} dB {found.numpy()[level == step].mean():.1%}" for step in steps)
        for found in correct.values()
    ]
    caption = "; ".join(f"{name}: {figures}" for name, figures in zip(correct, means, strict=True)) + "."
    return Panel("Accuracy against noise", fig, caption, wide=True)


def neighbours_panel(
    model: AST | WaveformModel,
    clips: Sequence[Float[Tensor, "_"]],
    before: Float[np.ndarray, "n d"],
    after: Float[np.ndarray, "n e"],
    queries: int = 5,
) -> Panel:
    """Some clips, and those nearest to each. before, after: the features of all clips at the start and at the end.

    model: is only asked how it makes spectrograms.
    """
    found = nearest_before_and_after(before, after, queries)
    fig, axes = figure(11, 1.15 * len(found) + 0.3, len(found), 11, subplot_kw=NO_TICKS, gridspec_kw=NEIGHBOURS)
    for axis in axes[:, (1, 6)].flat:
        axis.axis("off")
    for row, (query, *neighbours) in zip(axes, found, strict=True):
        places = [(row[0], query)]
        for first, numbers in zip((2, 7), neighbours, strict=True):
            places += zip(row[first:], numbers, strict=False)
        for axis, number in places:
            draw_spectrogram(axis, model, clips[number])
    for column, title in ((0, "clip"), (2, "nearest before training"), (7, "nearest after training")):
        axes[0, column].set_title(title, fontsize=8, color=TEXT, loc="left")
    caption = (
        f"Validation clips (time to the right, frequency upwards), and the nearest to each among {len(clips):,} by the "
        "angle between the features, before and after training."
    )
    return Panel("Neighbours", fig, caption, wide=True)
