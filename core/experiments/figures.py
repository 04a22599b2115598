"""Figures in one style. They are drawn without pyplot, so that other figures of the process stay as they are."""

import io
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import LogFormatter

from ..files import replacing

BLUE, ORANGE, GREY = "#2563eb", "#ea580c", "#94a3b8"
TEXT, CORRECT, WRONG = "#334155", "#15803d", "#dc2626"
STYLE: dict[Any, Any] = {
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
"""For `subplot_kw`, where axes show an image: the layout of ticks takes most of the drawing time, even if hidden."""


def figure(
    width: float | int, height: float | int, rows: int = 1, columns: int = 1, **kwargs: Any
) -> tuple[Figure, np.ndarray]:
    """A figure in the page's style, and its axes (rows x columns). width and height are in inches."""
    with rc_context(STYLE):
        fig = Figure(figsize=(width, height), layout="constrained")
        axes = fig.subplots(rows, columns, squeeze=False, **kwargs)
    return fig, axes


def log_scale(axis: Axes, along: Literal["x", "y"] = "y") -> None:
    """Make an axis logarithmic, with plain numbers: powers of ten, set as formulas, double the drawing time."""
    change = axis.set_xscale if along == "x" else axis.set_yscale
    change("log", nonpositive="clip")
    scaled = axis.xaxis if along == "x" else axis.yaxis
    scaled.set_major_formatter("{x:g}")
    scaled.set_minor_formatter(LogFormatter(labelOnlyBase=False))


def save_figure(fig: Figure, path: Path) -> None:
    """Write an image file, whole or not at all."""
    with replacing(path) as partial:
        draw_figure(fig, partial, dpi=150)


def draw_figure(fig: Figure, target: Path | io.StringIO, **options: Any) -> None:
    """Save a figure. All its text is drawn literally: a class that is named $x$ is not read as a formula.

    A letter that the font lacks is drawn as a box, without a warning.
    """
    for text in fig.findobj(Text):
        text.set(text=literal(text.get_text()), parse_math=False, usetex=False)
    with rc_context({"text.parse_math": False, "text.usetex": False}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")
        fig.savefig(target, **options)


def literal(text: str) -> str:
    """Text that can be drawn and written: bytes of a file name that are not valid text become escape sequences."""
    return text.encode("utf-8", "backslashreplace").decode()


def shortened(name: str, most: int = 30) -> str:
    """A name, cut to at most so many letters."""
    return name if len(name) <= most else f"{name[: most - 1]}…"


def smooth(values: Sequence[float], weight: float = 0.9) -> list[float]:
    """The exponential moving average, corrected for its start."""
    smoothed, total, mass = [], 0.0, 0.0
    for value in values:
        total, mass = weight * total + (1 - weight) * value, weight * mass + (1 - weight)
        smoothed.append(total / mass)
    return smoothed
