"""The joint space, drawn: where things lie, what is found for what, and how well."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from matplotlib.axes import Axes
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from torch import Tensor

from core.experiments import Panel
from core.experiments.figures import NO_TICKS, figure
from vision.plots import to_picture

from .data import MultimodalData, Shown
from .model import MODALITIES, ContrastiveModel
from .objectives import directions

MARKERS = {"image": "s", "audio": "^", "text": "o"}
GOOD, BAD, PLAIN = "#15803d", "#dc2626", "#334155"
QUERIES, FOUND = 5, 6  # rows and results of a grid
MOST_DRAWN = 1500  # points of the space


def directions_panel(vectors: Float[Tensor, "n 3 d"], things: Int[Tensor, "n"]) -> Panel:
    body = "".join(
        f"<tr><td>{d.query} &rarr; {d.among}</td><td>{d.zero_shot:.1%}</td><td>{d.recall_1:.1%}</td>"
        f"<td>{d.recall_5:.1%}</td><td>{d.median_rank:g}</td></tr>"
        for d in directions(vectors, things)
    )
    head = "<tr><th></th><th>zero-shot</th><th>recall at 1</th><th>recall at 5</th><th>median rank</th></tr>"
    caption = (
        "Test samples of one modality look for their own thing among those of another: by the nearest centre of a "
        "thing's samples (zero-shot), and by the nearest samples. A sample is right where it shows the same thing; "
        "the rank is that of the first that does."
    )
    return Panel("From one modality to another", f"<table>{head}{body}</table>", caption, wide=True)


def space_panel(vectors: Float[Tensor, "n 3 d"], things: Int[Tensor, "n"]) -> Panel:
    """Directions in the joint space by their two main axes and by t-SNE; a colour a thing, a marker a modality."""
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
            axis.scatter([], [], marker=MARKERS[modality], c=PLAIN, s=16, label=modality)
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
                    color=PLAIN,
                )
        axis.set_title(name)
        axis.set_xticks([])
        axis.set_yticks([])
        axis.legend(frameon=False, fontsize=7, loc="best")
    caption = "Test samples in the joint space: a colour for each thing, a marker for each modality."
    return Panel("The joint space", fig, caption, wide=True)


def retrieval_panel(
    model: ContrastiveModel, data: MultimodalData, vectors: Float[Tensor, "n 3 d"], things: Int[Tensor, "n"]
) -> list[Panel]:
    """For a few test samples of each modality, the nearest of the two others."""
    panels = []
    for query, modality in enumerate(MODALITIES):
        others = [number for number in range(len(MODALITIES)) if number != query]
        asked = _asked(vectors, things, query, others)
        if not asked:
            continue
        columns = 1 + len(others) * FOUND
        fig, axes = figure(11, 0.95 * len(asked) + 0.2, len(asked), columns, subplot_kw=NO_TICKS)
        fig.set_layout_engine(None)  # so many axes take the engine seconds
        fig.subplots_adjust(left=0.005, right=0.995, bottom=0.02, top=0.96, wspace=0.1, hspace=0.25)
        for row, number in zip(axes, asked, strict=True):
            _draw(row[0], model, data, number, query, "query", PLAIN)
            for place, other in enumerate(others):
                cells = row[1 + place * FOUND : 1 + (place + 1) * FOUND]
                logits = (vectors[:, other] @ vectors[number, query]).where(vectors[:, other].any(dim=1), -torch.inf)
                best = [int(i) for i in logits.argsort(descending=True)[: len(cells)] if logits[i].isfinite()]
                for cell in cells[len(best) :]:
                    cell.axis("off")
                for rank, (cell, found) in enumerate(zip(cells, best, strict=False), 1):
                    color = GOOD if things[found] == things[number] else BAD
                    _draw(cell, model, data, found, other, str(rank), color)
        title = f"From {modality} to {' and '.join(MODALITIES[other] for other in others)}"
        caption = (
            "Each row: a test sample, and the nearest of each other modality; red where it shows another thing. "
            "Mistakes come first."
        )
        panels.append(Panel(title, fig, caption, wide=True))
    return panels


def _asked(vectors: Float[Tensor, "n 3 d"], things: Int[Tensor, "n"], query: int, others: Sequence[int]) -> list[int]:
    """A few samples: first some whose nearest shows another thing, then different things evenly."""
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


def _draw(
    axis: Axes, model: ContrastiveModel, data: MultimodalData, number: int, modality: int, title: str, color: str
) -> None:
    sample: Shown = data.test[number]
    axis.set_title(title, fontsize=7, color=color, pad=2)
    axis.grid(False)
    for spine in axis.spines.values():
        spine.set(visible=True, color=color, linewidth=1.2)
    draw: tuple[Callable, ...] = (_draw_image, _draw_clip, _draw_text)
    draw[modality](axis, model, data.texts[number] if modality == 2 else sample[modality])


def _draw_image(axis: Axes, model: ContrastiveModel, image: Float[Tensor, "c h w"]) -> None:
    picture = to_picture(image, model.config.image.preprocess)
    axis.imshow(picture, cmap="gray", vmin=0, vmax=1, aspect="auto")


@torch.no_grad()
def _draw_clip(axis: Axes, model: ContrastiveModel, clip: Float[Tensor, "samples"]) -> None:
    picture = model.embed.spectrograms(clip[None], torch.tensor([len(clip)]))[0][0].numpy()
    low, high = np.percentile(picture, (2, 99.8))
    axis.imshow(picture, cmap="magma", origin="lower", aspect="auto", vmin=low, vmax=high)


def _draw_text(axis: Axes, model: ContrastiveModel, text: str) -> None:
    shown = text if len(text) <= 12 else f"{text[:11]}…"
    axis.text(0.5, 0.5, shown, ha="center", va="center", fontsize=8, color=PLAIN, transform=axis.transAxes)


def subsets_panel(metrics: Mapping[str, float], modalities: Sequence[str]) -> Panel:
    """Accuracy with every subset of what the model takes."""
    every = "+".join(modalities)
    found = {name: value for name, value in metrics.items() if set(name.split("+")) <= set(MODALITIES)}
    found |= {every: metrics["accuracy"]}
    fig, [[axis]] = figure(11, 0.5 + 0.3 * len(found))
    bars = axis.barh(list(found), list(found.values()), color="#2563eb", height=0.6)
    axis.bar_label(bars, [f"{value:.1%}" for value in found.values()], padding=3, fontsize=8)
    axis.set_xlim(0, 1.08)
    axis.invert_yaxis()
    axis.grid(axis="y", visible=False)
    caption = "Test accuracy of one model, shown only some of the modalities."
    return Panel("From whatever is there", fig, caption, wide=True)
