"""Figures of one style, drawn without touching what others draw in the process."""

import io
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import LogFormatter

from ..files import replacing

matplotlib.use("Agg")

BLUE, ORANGE, GREY = "#2563eb", "#ea580c", "#94a3b8"
STYLE = {
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "axes.labelcolor": "#475569",
    "xtick.color": "#475569",
    "ytick.color": "#475569",
    "axes.grid": True,
    "grid.color": "#e2e8f0",
    "axes.axisbelow": True,
    "svg.fonttype": "path",
}
NO_TICKS = {"xticks": (), "yticks": ()}
"""Of a picture's axes, by `subplot_kw`: to find room for ticks, even hidden ones, takes most of the time to draw."""


def figure(
    width: float | int, height: float | int, rows: int = 1, columns: int = 1, **kwargs
) -> tuple[Figure, np.ndarray]:
    """A figure in the page's style and its axes (rows x columns); inches."""
    with plt.rc_context(STYLE):
        fig, axes = plt.subplots(rows, columns, figsize=(width, height), squeeze=False, layout="constrained", **kwargs)
    return fig, axes


def log_scale(axis: Axes) -> None:
    """Upwards, with plain numbers: powers of ten, set as formulas, would double the time to draw."""
    axis.set_yscale("log", nonpositive="clip")
    axis.yaxis.set_major_formatter("{x:g}")
    axis.yaxis.set_minor_formatter(LogFormatter(labelOnlyBase=False))


def save_figure(fig: Figure, path: Path) -> None:
    """A picture file, whole or not at all."""
    with replacing(path) as partial:
        _draw(fig, partial, dpi=150)


def literal(text: str) -> str:
    """Text that can be drawn and written: bytes of a file's name that are no text are shown as numbers."""
    return text.encode("utf-8", "backslashreplace").decode()


def _draw(fig: Figure, target: Path | io.StringIO, **options: Any) -> None:
    """Save a figure, in which all text is drawn as it is written: a class named $x$ is not read as a formula.

    Letters that the font lacks are drawn as boxes, without a warning for each.
    """
    for text in fig.findobj(Text):
        text.set(text=literal(text.get_text()), parse_math=False, usetex=False)
    with plt.rc_context({"text.parse_math": False, "text.usetex": False}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")
        try:
            fig.savefig(target, **options)
        finally:
            plt.close(fig)


def shortened(name: str, most: int = 30) -> str:
    """A name as there is room for it in a figure."""
    return name if len(name) <= most else f"{name[: most - 1]}…"


def smooth(values: Sequence[float], weight: float = 0.9) -> list[float]:
    """A running mean that starts unbiased."""
    smoothed, total, mass = [], 0.0, 0.0
    for value in values:
        total, mass = weight * total + (1 - weight) * value, weight * mass + (1 - weight)
        smoothed.append(total / mass)
    return smoothed
