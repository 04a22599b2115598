"""Plots of chains: their folds, their contacts, and the calibration of the predicted contacts."""

import numpy as np
from jaxtyping import Bool, Float, Int
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from torch import Tensor

from core.experiments import Panel
from core.experiments.figures import BLUE, CORRECT, GREY, ORANGE, TEXT, WRONG, figure

from .lattice import GRID, Landscape, pairs
from .objective import LONG_RANGE


def coordinates(walk: Int[np.ndarray, "n"]) -> Int[np.ndarray, "n 2"]:
    """Column and row of each site, relative to the first one."""
    middle = GRID // 2
    site = walk.astype(int) + middle * GRID + middle
    return np.stack([site % GRID, site // GRID], axis=1) - middle


def draw_fold(
    axis: Axes,
    walk: Int[np.ndarray, "n"],
    residues: Int[np.ndarray, "n"],
    title: str = "",
    color: str = TEXT,
) -> None:
    """Beads on a string. Hydrophobic residues are orange, H-H contacts dotted, and a ring marks the first residue."""
    places = coordinates(walk)
    axis.plot(*places.T, color="#475569", linewidth=2, zorder=1)
    for i, j in zip(*pairs(len(walk)), strict=True):
        if residues[i] and residues[j] and np.abs(places[i] - places[j]).sum() == 1:
            axis.plot(*places[[i, j]].T, color=ORANGE, linewidth=1.2, linestyle=(0, (1, 1)), zorder=0)
    colors = np.where(residues == 1, ORANGE, "#e2e8f0")
    axis.scatter(*places.T, s=52, c=colors, edgecolors="#475569", linewidths=0.8, zorder=2)
    axis.scatter(*places[0], s=130, facecolors="none", edgecolors=BLUE, linewidths=1, zorder=3)
    centre = (places.max(axis=0) + places.min(axis=0)) / 2
    for limits, middle in ((axis.set_xlim, centre[0]), (axis.set_ylim, centre[1])):
        limits(middle - 3.2, middle + 3.2)  # the same scale for all chains
    axis.set_aspect("equal")
    axis.axis("off")
    axis.set_title(title, fontsize=8, color=color)


def draw_contacts(axis: Axes, probabilities: Float[Tensor, "n n"], targets: Float[Tensor, "n n"]) -> None:
    """The predicted probabilities of contacts above the diagonal, and the targets below it."""
    n = len(targets)
    i, j = pairs(n)
    image = np.zeros((n, n))
    image[i, j], image[j, i] = probabilities[i, j], targets[i, j]
    axis.imshow(image, cmap="Blues", vmin=0, vmax=1)
    axis.plot([-0.5, n - 0.5], [-0.5, n - 0.5], color=GREY, linewidth=0.8)
    axis.grid(False)
    axis.set_xticks([0, n - 1], ["1", str(n)], fontsize=6)
    axis.set_yticks([0, n - 1], ["1", str(n)], fontsize=6)


def folds_panel(
    landscapes: dict[int, Landscape],
    chains: list[tuple[Int[np.ndarray, "_n"], Float[Tensor, "_n _n"], Float[Tensor, "_n _n"]]],
    folded: float,
    unfolded: int,
) -> Panel:
    """chains: the residues of each, the logits of its contacts, and the targets.

    folded: the fraction of all chains whose fold is correct. unfolded: how many of the chains shown, which are the
    first of them, have a wrong fold.
    """
    fig, axes = figure(11, 4.6, 3, len(chains))
    for column, (residues, logits, targets) in zip(axes.T, chains, strict=True):
        found = landscapes[len(residues)]
        i, j = pairs(len(residues))
        target = int((found.contacts == (targets[i, j].numpy() > 0.5)).all(axis=1).argmax())
        predicted = int(found.decode(logits[None])[0])
        draw_fold(column[0], found.walks[target], residues)
        draw_fold(
            column[1],
            found.walks[predicted],
            residues,
            color=CORRECT if predicted == target else WRONG,
            title="the ground state" if predicted == target else "another fold",
        )
        draw_contacts(column[2], logits.sigmoid(), targets)
    for axis, name in zip(axes[:, 0], ("target", "prediction", "contacts"), strict=True):
        axis.text(-0.15, 0.5, name, transform=axis.transAxes, rotation=90, va="center", ha="right", fontsize=9)
    beads = [
        Line2D([], [], marker="o", linestyle="", color=color, markeredgecolor="#475569", label=name)
        for color, name in ((ORANGE, "hydrophobic"), ("#e2e8f0", "polar"))
    ]
    fig.legend(handles=beads, loc="outside lower center", ncols=2, frameon=False)
    caption = (
        f"Test chains in their only ground state, and the predicted fold: the walk whose contacts are jointly the most "
        f"probable. It is the ground state for {folded:.1%} of all test chains; the first {unfolded} shown here are "
        f"among the others. Contact maps: predictions above the diagonal, targets below."
    )
    return Panel("Predicted folds", fig, caption, wide=True)


def reliability_panel(
    separations: Int[np.ndarray, "k"], probabilities: Float[np.ndarray, "k"], targets: Bool[np.ndarray, "k"]
) -> Panel:
    """The calibration of predicted contacts that are near and far apart along the chain."""
    fig, [[axis]] = figure(5, 3.2)
    far, bins = separations >= LONG_RANGE, np.digitize(probabilities, np.linspace(0.1, 0.9, 9))
    axis.plot([0, 1], [0, 1], color=GREY, linewidth=0.8, linestyle="--")
    for name, among, color in (("near", ~far, BLUE), (f"{LONG_RANGE} or more apart", far, ORANGE)):
        kept = [b for b in range(10) if (among & (bins == b)).sum() >= 5]
        mean = [probabilities[among & (bins == b)].mean() for b in kept]
        fraction = [targets[among & (bins == b)].mean() for b in kept]
        axis.plot(mean, fraction, "o-", color=color, markersize=4, label=name)
    axis.set_xlabel("predicted probability")
    axis.set_ylabel("fraction in contact")
    axis.legend(frameon=False)
    return Panel("Calibration", fig, "Pairs of residues of all test chains, grouped by their predicted probability.")
