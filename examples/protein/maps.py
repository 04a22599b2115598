"""Plots of contact maps: of a prediction alone, and compared with the target."""

from collections.abc import Mapping

import numpy as np
import torch
from jaxtyping import Bool, Float
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, ListedColormap
from matplotlib.figure import Figure
from torch import Tensor

from core import IGNORE
from core.experiments.figures import BLUE, GREY, figure

from .precision import Precision

RIGHT, WRONG = "#15803d", "#dc2626"
RANGES = "#38bdf8", BLUE, "#172554"
UNKNOWN = "#e2e8f0"
NEAREST = 6  # residues apart; nearer ones touch whatever the fold
PALE = 0.3  # opacity of those
MOST_LETTERS = 60  # longest sequence whose letters are shown
INK = LinearSegmentedColormap.from_list("ink", ["#ffffff", "#bfdbfe", BLUE, "#172554"])


def draw_prediction(name: str, sequence: str, probabilities: Float[Tensor, "n n"]) -> Figure:
    """The probability that each two residues touch; below, how many others each one is expected to touch."""
    n = len(sequence)
    fig, axes = figure(5.6, 6.2, rows=2, gridspec_kw={"height_ratios": [6, 1]}, sharex=True)
    axis, below = axes[:, 0]
    image = axis.imshow(probabilities.numpy(), cmap=INK, vmin=0, vmax=1, aspect="auto")
    _frame(axis, n)
    axis.tick_params(labelbottom=False)
    axis.set_title(f"{_short(name)} ({n}): predicted contacts")
    fig.colorbar(image, ax=axis, label="probability", shrink=0.6, pad=0.02)
    touched = probabilities.where(_apart(n), 0).sum(dim=1).numpy()
    below.stairs(touched, np.arange(n + 1) - 0.5, fill=True, color=BLUE, alpha=0.5)
    below.set_ylim(bottom=0)
    below.set_ylabel("expected\ncontacts")
    below.set_xlabel(f"residue (contacts: {NEAREST} or more apart)")
    if n <= MOST_LETTERS:
        below.set_xticks(range(n), list(sequence), fontsize=6)
        below.tick_params(axis="x", length=0)
    return fig


def draw_comparison(
    name: str, probabilities: Float[Tensor, "n n"], target: Float[Tensor, "n n"], found: Mapping[str, Precision]
) -> Figure:
    """Above the diagonal the predicted probabilities, the most probable pairs marked as right or wrong; below it the
    target. A second plot shows how precision falls as more pairs are selected."""
    fig, axes = figure(10.4, 5.6, columns=2, gridspec_kw={"width_ratios": [5, 4]})
    _draw_halves(axes[0, 0], probabilities, target)
    axes[0, 0].set_title(f"{_short(name)}: predicted above, true below")
    _draw_precision(axes[0, 1], found)
    return fig


def _draw_halves(axis: Axes, probabilities: Float[Tensor, "n n"], target: Float[Tensor, "n n"]) -> None:
    n = len(target)
    upper = torch.ones(n, n, dtype=torch.bool).triu(1)
    shown = probabilities.where(upper, target.clamp(min=0))
    axis.imshow(shown.where(_apart(n), shown * PALE).numpy(), cmap=INK, vmin=0, vmax=1)
    unknown = np.ma.masked_where((target != IGNORE).numpy() | upper.numpy(), np.ones((n, n)))
    axis.imshow(unknown, cmap=ListedColormap([UNKNOWN]))

    i, j = (upper & _apart(n) & (target != IGNORE)).nonzero(as_tuple=True)
    size = min(14, 4_000 / n)
    surest = probabilities[i, j].argsort(descending=True, stable=True)[:n]
    for touch, color, label in ((1, RIGHT, "touch"), (0, WRONG, "do not")):
        kept = surest[target[i, j][surest] == touch]
        label = f"{len(kept)} {label}"
        axis.scatter(j[kept], i[kept], s=size, facecolors="none", edgecolors=color, linewidths=0.8, label=label)
    if (target == IGNORE).any():
        axis.plot([], [], "s", color=UNKNOWN, markersize=7, label="not resolved")
    axis.plot([-0.5, n - 0.5], [-0.5, n - 0.5], color=GREY, linewidth=0.8)
    title = f"the {len(surest)} surest, {NEAREST} or more apart (nearer ones: pale)"
    axis.legend(title=title, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.09), ncols=3)
    _frame(axis, n)
    axis.set_xlabel("residue")


def _draw_precision(axis: Axes, found: Mapping[str, Precision]) -> None:
    for (label, precision), color in zip(found.items(), RANGES, strict=False):
        if not precision.pairs:
            continue
        picked = np.arange(1, len(precision.surest) + 1)
        part = picked / precision.length
        axis.plot(part, precision.surest, color=color, linewidth=1.8, label=f"{label}, {precision.contacts} contacts")
        axis.plot(part, (precision.contacts / picked).clip(max=1), color=color, linewidth=0.9, linestyle=(0, (5, 3)))
        axis.axhline(precision.random, color=color, linewidth=0.9, linestyle=(0, (1, 2)))
    axis.set_xticks([0.2, 0.5, 1], ["L/5", "L/2", "L"])
    axis.set_xlim(0, 1)
    axis.set_ylim(0, 1.02)
    axis.set_xlabel("surest pairs picked")
    axis.set_ylabel("fraction that touch")
    axis.set_title("Precision (dashed: at best, dotted: at random)")
    if axis.lines:
        axis.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.09), ncols=2)


def _apart(n: int) -> Bool[Tensor, "n n"]:
    place = torch.arange(n)
    return (place - place[:, None]).abs() >= NEAREST


def _frame(axis: Axes, n: int) -> None:
    axis.grid(False)
    for side in axis.spines.values():
        side.set(visible=True, color=GREY)
    axis.set_ylabel("residue")
    axis.set_xticks(*_marks(n))
    axis.set_yticks(*_marks(n))


def _marks(n: int) -> tuple[list[int], list[int]]:
    """Places counted from 0 and their numbers, counted from 1: round ones, a handful."""
    step = next(step for power in range(9) for step in (10**power, 2 * 10**power, 5 * 10**power) if n <= 8 * step)
    numbers = sorted({1, *range(step, n + 1, step)})
    return [number - 1 for number in numbers], numbers


def _short(name: str, most: int = 36) -> str:
    return name if len(name) <= most else f"{name[: most - 3]}..."
