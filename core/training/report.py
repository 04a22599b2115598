"""report.html: one self-contained page that a person would rather look at than read logs."""

import html
import io
import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import LogFormatter
from torch import Tensor, nn

from ..attention import attention_rollout, record_attention
from ..files import replacing, write_text

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


@dataclass
class Panel:
    """A titled part of the page: a figure, or HTML."""

    title: str
    content: Figure | str
    caption: str = ""
    wide: bool = False


def write_report(
    path: Path,
    title: str,
    figures: Mapping[str, str],
    panels: Sequence[Panel],
    details: Mapping[str, Any],
) -> None:
    """figures: the headline, name to value. details: shown as JSON at the end, folded."""
    cards = "".join(
        f"<div class=card><b>{html.escape(value)}</b><span>{html.escape(name)}</span></div>"
        for name, value in figures.items()
    )
    sections = "".join(
        f"<section class='{'wide' if panel.wide else ''}'><h2>{html.escape(panel.title)}</h2>"
        f"{panel.content if isinstance(panel.content, str) else _svg(panel.content)}"
        f"<p>{html.escape(panel.caption)}</p></section>"
        for panel in panels
    )
    folded = "".join(
        f"<details><summary>{html.escape(name)}</summary>"
        f"<pre>{html.escape(json.dumps(value, indent=2))}</pre></details>"
        for name, value in details.items()
    )
    page = PAGE.format(title=html.escape(title), cards=cards, sections=sections, details=folded)
    write_text(path, literal(page))


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


def curves(rows: Sequence[Mapping[str, Any]], metric: str, baseline: tuple[str, float] | None = None) -> Panel:
    """Loss, the test metric (with a baseline's line), learning rate and gradient norm against the step."""
    fig, axes = figure(11, 2.6, columns=4)

    def series(name: str) -> tuple[list[int], list[float]]:
        points = [(row["step"], row[name]) for row in rows if name in row]
        return [p[0] for p in points], [p[1] for p in points]

    loss, metric_axis, lr, norm = axes[0]
    steps, values = series("loss")
    loss.plot(steps, values, color=GREY, linewidth=0.6, alpha=0.6)
    loss.plot(steps, smooth(values), color=BLUE, linewidth=1.5, label="train")
    loss.plot(*series("test_loss"), "o-", color=ORANGE, markersize=3, label="test")
    log_scale(loss)
    loss.set_title("loss")
    loss.legend(frameon=False)
    metric_axis.plot(*series(f"test_{metric}"), "o-", color=ORANGE, markersize=3, label="test")
    if baseline:
        metric_axis.axhline(baseline[1], color=GREY, linestyle="--", linewidth=1, label=baseline[0])
        metric_axis.legend(loc="lower right", frameon=False)
    metric_axis.set_title(metric)
    lr.plot(*series("lr"), color=BLUE)
    lr.set_title("learning rate")
    norm.plot(*series("grad_norm"), color=BLUE, linewidth=0.8)
    log_scale(norm)
    norm.set_title("gradient norm")
    for axis in axes[0]:
        axis.set_xlabel("step")
    return Panel("How it went", fig, wide=True)


def health(rows: Sequence[Mapping[str, Any]]) -> Panel:
    """The monitor's figures, block by block (dark to light: from the first to the last), and what it said."""
    kinds = {
        "grad_norm": "gradient norm",
        "update": "weights' change in a step",
        "logit": "largest attention logit",
        "entropy": "attention's entropy, nats",
    }
    names = {kind: list(dict.fromkeys(n for row in rows for n in row if n.startswith(f"{kind}/"))) for kind in kinds}
    kinds = {kind: title for kind, title in kinds.items() if names[kind]}
    fig, axes = figure(11, 2.6, columns=max(len(kinds), 1))
    for axis, (kind, title) in zip(axes[0], kinds.items(), strict=False):
        colors = plt.get_cmap("viridis")(np.linspace(0, 0.9, len(names[kind])))
        for name, color in zip(names[kind], colors, strict=True):
            points = [(row["step"], row[name]) for row in rows if name in row]
            style = {"color": color, "linewidth": 0.8, "marker": ".", "markersize": 2}
            axis.plot(*zip(*points, strict=True), **style, label=name.partition("/")[2])
        if kind in ("grad_norm", "update"):
            log_scale(axis)
        axis.set_title(title)
        axis.set_xlabel("step")
        if len(names[kind]) <= 8:
            axis.legend(frameon=False, fontsize=6)
    said = [f"Step {row['step']}: {text}." for row in rows for text in row.get("alarms", [])]
    return Panel("How healthy it was", fig, " ".join(said) or "No alarm was raised.", wide=True)


def shortened(name: str, most: int = 30) -> str:
    """A name as there is room for it in a figure."""
    return name if len(name) <= most else f"{name[: most - 1]}…"


def confusion(targets: np.ndarray, predictions: np.ndarray, labels: Sequence[str]) -> Panel:
    """Rows are the truth; each cell counts test samples."""
    from sklearn.metrics import confusion_matrix

    labels = [shortened(label) for label in labels]
    counts = confusion_matrix(targets, predictions, labels=range(len(labels)))
    shares = counts / counts.sum(axis=1, keepdims=True).clip(min=1)
    side = min(max(3.5, 0.4 * len(labels)), 9)
    fig, [[axis]] = figure(side, side)
    axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axis.grid(False)
    if len(labels) <= 30:
        labels = [literal(label) for label in labels]
        for (row, column), count in np.ndenumerate(counts):
            if count:
                color = "white" if shares[row, column] > 0.5 else "#334155"
                axis.text(column, row, str(count), ha="center", va="center", color=color, fontsize=8)
        axis.set_xticks(range(len(labels)), labels, rotation=0 if max(map(len, labels)) < 4 else 90)
        axis.set_yticks(range(len(labels)), labels)
    axis.set_xlabel("predicted")
    axis.set_ylabel("true")
    wrong = int((targets != predictions).sum())
    return Panel("Confusion", fig, f"{wrong} of {len(targets)} test samples wrong. Rows are the truth.")


def per_class(targets: np.ndarray, predictions: np.ndarray, labels: Sequence[str]) -> Panel:
    from sklearn.metrics import precision_recall_fscore_support

    precision, recall, f1, support = precision_recall_fscore_support(
        targets, predictions, labels=range(len(labels)), zero_division=0
    )
    body = "".join(
        f"<tr><td>{html.escape(label)}</td><td>{p:.1%}</td><td>{r:.1%}</td><td>{f:.1%}</td><td>{n}</td></tr>"
        for label, p, r, f, n in zip(labels, precision, recall, f1, support, strict=True)
    )
    head = "<tr><th>class</th><th>precision</th><th>recall</th><th>F1</th><th>samples</th></tr>"
    return Panel("Class by class", f"<table>{head}{body}</table>")


@torch.no_grad()
def attention_map(model: nn.Module, *inputs: Tensor) -> Float[Tensor, "b rows columns"]:
    """How much of each patch reaches the pooled vector: attention rolled out over all layers; each map's peak is 1.

    model: has `tokens` (with a grid), `features` and a config with `pool` and `encoder`, as ViT and AST have.
    """
    model.eval()
    with record_attention() as calls:
        model.features(*inputs)
    tokens = model.tokens(*inputs)
    depth = model.config.encoder.depth
    flow = attention_rollout([call.weights for call in calls[:depth]])
    prompt = flow.shape[1] - tokens.x.shape[1]  # tokens of an adapter, before the others
    flow = flow[:, prompt:, prompt:]
    match model.config.pool:
        case "cls":
            reached = flow[:, 0]
        case "prefix":
            reached = flow[:, : tokens.prefix].mean(dim=1)
        case "attention":
            reached = (calls[depth].weights.mean(dim=1) @ flow)[:, 0]
        case _:
            reached = flow[:, tokens.prefix :].mean(dim=1)
    maps = reached[:, tokens.prefix :].unflatten(1, tokens.grid)
    return maps / maps.amax(dim=(1, 2), keepdim=True)


def smooth(values: Sequence[float], weight: float = 0.9) -> list[float]:
    """A running mean that starts unbiased."""
    smoothed, total, mass = [], 0.0, 0.0
    for value in values:
        total, mass = weight * total + (1 - weight) * value, weight * mass + (1 - weight)
        smoothed.append(total / mass)
    return smoothed


def _svg(fig: Figure) -> str:
    buffer = io.StringIO()
    no_metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    _draw(fig, buffer, format="svg", transparent=True, metadata=no_metadata)
    text = buffer.getvalue()
    return text[text.index("<svg") :]


PAGE = """<!doctype html>
<html lang=en><meta charset=utf-8><meta name=viewport content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
:root {{ color-scheme: light; }}
body {{ font: 15px/1.5 system-ui, sans-serif; color: #1e293b; background: #f8fafc; margin: 0 auto; padding: 2rem;
  max-width: 1160px; }}
h1 {{ font-size: 1.7rem; margin: 0 0 1rem; }}
h2 {{ font-size: 1rem; margin: 0 0 .6rem; }}
.cards {{ display: flex; flex-wrap: wrap; gap: .8rem; margin-bottom: 1.2rem; }}
.card {{ background: #fff; border: 1px solid #e2e8f0; border-radius: 10px; padding: .7rem 1.1rem; }}
.card b {{ display: block; font-size: 1.35rem; font-variant-numeric: tabular-nums; }}
.card span {{ color: #64748b; font-size: .82rem; }}
main {{ display: grid; grid-template-columns: 1fr 1fr; gap: 1rem; align-items: start; }}
section {{ background: #fff; border: 1px solid #e2e8f0; border-radius: 10px; padding: 1rem 1.2rem; min-width: 0; }}
section.wide {{ grid-column: 1 / -1; }}
section svg {{ width: 100%; height: auto; }}
section p {{ color: #64748b; font-size: .85rem; margin: .5rem 0 0; }}
section p:empty {{ display: none; }}
table {{ border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: .9rem; }}
td, th {{ text-align: right; padding: .25rem .5rem; border-bottom: 1px solid #f1f5f9; }}
td:first-child, th:first-child {{ text-align: left; }}
details {{ margin-top: 1rem; }}
summary {{ cursor: pointer; color: #475569; }}
pre {{ background: #fff; border: 1px solid #e2e8f0; border-radius: 10px; padding: 1rem; overflow-x: auto; }}
@media (max-width: 800px) {{ main {{ grid-template-columns: 1fr; }} }}
</style>
<h1>{title}</h1>
<div class=cards>{cards}</div>
<main>{sections}</main>
{details}
</html>
"""
