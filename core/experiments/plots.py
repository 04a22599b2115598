"""The plots that every modality's report may show."""

import html
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import numpy as np

from .report import Panel

matplotlib.use("Agg")
from .figures import BLUE, GREY, ORANGE, figure, literal, log_scale, shortened, smooth


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
