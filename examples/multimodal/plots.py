"""Plots of the joint space: its samples, retrieval from one modality to another, and accuracy."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from matplotlib.axes import Axes
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from torch import Tensor

from core.experiments import Panel
from core.experiments.figures import BLUE, CORRECT, NO_TICKS, TEXT, WRONG, figure, shortened
from core.experiments.report import render_table
from vision.plots import to_pixels

from .data import MultimodalData, Shown
from .model import ContrastiveModel
from .objectives import directions
from .things import MODALITIES
from .two_towers import TwoTowers

MARKERS = {"image": "s", "audio": "^", "text": "o"}
QUERIES, FOUND = 5, 6  # rows and results of a grid
MOST_DRAWN = 1500  # points of the space


def directions_panel(vectors: Float[Tensor, "n 3 d"], things: Int[Tensor, "n"]) -> Panel:
    columns = ("query → results", "zero-shot accuracy", "recall at 1", "recall at 5", "median rank")
    rows = [
        (
            f"{d.query} → {d.among}",
            *(f"{value:.1%}" for value in (d.zero_shot, d.recall_1, d.recall_5)),
            f"{d.median_rank:g}",
        )
        for d in directions(vectors, things)
    ]
    caption = (
        "Each test sample of one modality is a query among the samples of another. Zero-shot accuracy: the predicted "
        "class is that of the nearest class centre. Recall and rank: a result is correct if it is of the same class as "
        "the query, and the rank is that of the first correct result."
    )
    return Panel("Retrieval from one modality to another", render_table(columns, rows), caption, wide=True)


def space_panel(vectors: Float[Tensor, "n 3 d"], things: Int[Tensor, "n"]) -> Panel:
    """The samples in the joint space, projected by PCA and by t-SNE. Colours are classes, markers modalities."""
    vectors, things = vectors[:MOST_DRAWN], things[:MOST_DRAWN]
    there = vectors.any(dim=2)
    points = F.normalize(vectors[there], dim=1).numpy()
    kinds = there.nonzero()[:, 1].numpy()
    thing = things[there.nonzero()[:, 0]].numpy()
    few = len(np.unique(thing)) <= 10
    fig, axes = figure(11, 4.6, columns=2)
    maps = {"PCA": PCA(2, random_state=0), "t-SNE": TSNE(2, perplexity=min(30, (len(points) - 1) / 3), random_state=0)}
    for axis, (name, reduce) in zip(axes[0], maps.items(), strict=True):
        flat = reduce.fit_transform(points)
        for number, modality in enumerate(MODALITIES):
            mine = kinds == number
            axis.scatter(
                *flat[mine].T,
                c=thing[mine],
                cmap="tab10" if few else "hsv",
                vmin=thing.min(),
                vmax=max(thing.max(), thing.min() + 1),
                marker=MARKERS[modality],
                s=16,
                linewidths=0.3,
                edgecolors="white",
                alpha=0.8,
            )
            axis.scatter([], [], marker=MARKERS[modality], c=TEXT, s=16, label=modality)
        if few:
            for label in np.unique(thing):
                mine = thing == label
                mine = mine & (kinds == kinds[mine].max())  # a median over modalities can lie where none is
                axis.annotate(
                    str(label),
                    np.median(flat[mine], axis=0),
                    xytext=(0, 9),
                    textcoords="offset points",
                    ha="center",
                    fontsize=11,
                    fontweight="bold",
                    color=TEXT,
                )
        axis.set_title(name)
        axis.set_xticks([])
        axis.set_yticks([])
        axis.legend(frameon=False, fontsize=7, loc="best")
    caption = "Test samples in the joint space. Each class has a colour, and each modality a marker."
    return Panel("The joint space", fig, caption, wide=True)


def retrieval_panel(
    model: ContrastiveModel | TwoTowers, data: MultimodalData, vectors: Float[Tensor, "n 3 d"], things: Int[Tensor, "n"]
) -> list[Panel]:
    """For a few test samples of each modality, the nearest samples of the two others."""
    panels = []
    for query, modality in enumerate(MODALITIES):
        there = vectors.any(dim=2).any(dim=0).tolist()
        others = [number for number in range(len(MODALITIES)) if number != query and there[number]]
        asked = _asked(vectors, things, query, others)
        if not asked:
            continue
        columns = 1 + len(others) * FOUND
        fig, axes = figure(11, 0.95 * len(asked) + 0.2, len(asked), columns, subplot_kw=NO_TICKS)
        fig.set_layout_engine(None)  # it takes seconds with so many axes
        fig.subplots_adjust(left=0.005, right=0.995, bottom=0.02, top=0.96, wspace=0.1, hspace=0.25)
        for row, number in zip(axes, asked, strict=True):
            _draw(row[0], model, data, number, query, "query", TEXT)
            for place, other in enumerate(others):
                cells = row[1 + place * FOUND : 1 + (place + 1) * FOUND]
                logits = (vectors[:, other] @ vectors[number, query]).where(vectors[:, other].any(dim=1), -torch.inf)
                best = [int(i) for i in logits.argsort(descending=True)[: len(cells)] if logits[i].isfinite()]
                for cell in cells[len(best) :]:
                    cell.axis("off")
                for rank, (cell, found) in enumerate(zip(cells, best, strict=False), 1):
                    color = CORRECT if things[found] == things[number] else WRONG
                    _draw(cell, model, data, found, other, str(rank), color)
        title = f"From {modality} to {' and '.join(MODALITIES[other] for other in others)}"
        caption = (
            "Each row is a test sample and the nearest samples of each other modality. A sample of another class is "
            "red. Mistakes come first."
        )
        panels.append(Panel(title, fig, caption, wide=True))
    return panels


def _asked(vectors: Float[Tensor, "n 3 d"], things: Int[Tensor, "n"], query: int, others: Sequence[int]) -> list[int]:
    """A few samples: first some whose nearest sample is of another class, then some of different classes."""
    wrong = torch.zeros(len(things), dtype=torch.bool)
    some = False
    for other in others:
        there = vectors[:, other].any(dim=1)
        if there.any():
            some = True
            nearest = [(rows @ vectors[there, other].T).argmax(dim=1) for rows in vectors[:, query].split(1024)]
            wrong |= things[there][torch.cat(nearest)] != things
    shown = vectors[:, query].any(dim=1) & some
    mistaken = (shown & wrong).nonzero().flatten().tolist()[:2]
    first: dict[int, int] = {}
    for number in shown.nonzero().flatten().tolist():
        if number not in mistaken:
            first.setdefault(int(things[number]), number)
    places = np.linspace(0, len(first) - 1, min(QUERIES - len(mistaken), len(first))).round().astype(int)
    return [*mistaken, *([*first.values()][place] for place in places)]


def _draw(axis: Axes, model: Any, data: MultimodalData, number: int, modality: int, title: str, color: str) -> None:
    sample: Shown = data.test[number]
    axis.set_title(title, fontsize=7, color=color, pad=2)
    axis.grid(False)
    for spine in axis.spines.values():
        spine.set(visible=True, color=color, linewidth=1.2)
    draw: tuple[Callable, ...] = (_draw_image, _draw_clip, _draw_text)
    draw[modality](axis, model, data.texts[number] if modality == 2 else sample[modality])


def _draw_image(axis: Axes, model: ContrastiveModel | TwoTowers, image: Float[Tensor, "c h w"]) -> None:
    axis.imshow(to_pixels(image, model.config.image.preprocess), cmap="gray", vmin=0, vmax=1, aspect="auto")


@torch.no_grad()
def _draw_clip(axis: Axes, model: ContrastiveModel, clip: Float[Tensor, "samples"]) -> None:
    image = model.embed.spectrograms(clip[None], torch.tensor([len(clip)]))[0][0].numpy()
    low, high = np.percentile(image, (2, 99.8))
    axis.imshow(image, cmap="magma", origin="lower", aspect="auto", vmin=low, vmax=high)


def _draw_text(axis: Axes, model: ContrastiveModel | TwoTowers, text: str) -> None:
    axis.text(0.5, 0.5, shortened(text, 12), ha="center", va="center", fontsize=8, color=TEXT, transform=axis.transAxes)


def subsets_panel(metrics: Mapping[str, float], modalities: Sequence[str]) -> Panel:
    """Accuracy with every subset of the modalities."""
    every = "+".join(modalities)
    found = {name: value for name, value in metrics.items() if set(name.split("+")) <= set(MODALITIES)}
    found |= {every: metrics["accuracy"]}
    fig, [[axis]] = figure(11, 0.5 + 0.3 * len(found))
    bars = axis.barh(list(found), list(found.values()), color=BLUE, height=0.6)
    axis.bar_label(bars, [f"{value:.1%}" for value in found.values()], padding=3, fontsize=8)
    axis.set_xlim(0, 1.08)
    axis.invert_yaxis()
    axis.grid(axis="y", visible=False)
    caption = "Test accuracy of one model that is given only some of the modalities."
    return Panel("Accuracy by modalities", fig, caption, wide=True)
