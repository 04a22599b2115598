"""The plots that the reports of all modalities can show."""

from collections.abc import Collection, Mapping, Sequence
from itertools import cycle
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from matplotlib import colormaps
from matplotlib.axes import Axes
from torch import Tensor

from .figures import BLUE, GREY, ORANGE, TEXT, figure, literal, log_scale, shortened, smooth
from .report import Panel, render_table

MONITORED = {
    "grad_norm": "gradient norm",
    "update": "relative change of the weights",
    "logit": "largest attention logit",
    "entropy": "attention entropy, nats",
}
FEATURES = {"spread": "spread of the features", "rank": "effective rank", "cosine": "cosine between samples"}
TOO_OFTEN, TOO_MANY = 2, 10  # a class is named that is predicted so many times as often as it occurs, and so many more
PROBES = {"probe_linear": "linear probe", "probe_neighbours": "nearest neighbours"}


def training_curves(rows: Sequence[Mapping[str, Any]], metric: str, baseline: tuple[str, float] | None = None) -> Panel:
    """Loss, the metric (with a line for the baseline), learning rate and gradient norm against the step."""
    fig, [[loss, metric_axis, lr, norm]] = figure(11, 2.6, columns=4)
    steps, values = _series(rows, "loss")
    loss.plot(steps, values, color=GREY, linewidth=0.6, alpha=0.6)
    loss.plot(steps, smooth(values), color=BLUE, linewidth=1.5, label="train")
    for split, color in (("validation", ORANGE), ("test", TEXT)):
        for axis, name in ((loss, "loss"), (metric_axis, metric)):
            steps, values = _series(rows, f"{split}_{name}")
            if steps:
                axis.plot(steps, values, "o-", color=color, markersize=3, label=split)
    log_scale(loss)
    loss.set_title("loss")
    loss.legend(frameon=False)
    if baseline:
        metric_axis.axhline(baseline[1], color=GREY, linestyle="--", linewidth=1, label=baseline[0])
    if metric_axis.get_legend_handles_labels()[0]:
        metric_axis.legend(loc="lower right", frameon=False)
    metric_axis.set_title(metric)
    lr.plot(*_series(rows, "lr"), color=BLUE)
    lr.set_title("learning rate")
    norm.plot(*_series(rows, "grad_norm"), color=BLUE, linewidth=0.8)
    log_scale(norm)
    norm.set_title("gradient norm")
    for axis in (loss, metric_axis, lr, norm):
        axis.set_xlabel("step")
    return Panel("Training curves", fig, wide=True)


def training_health(rows: Sequence[Mapping[str, Any]]) -> Panel:
    """What the monitor measured of each block (dark to light: from the first to the last), and its alarms."""
    logged = dict.fromkeys(name for row in rows for name in row)
    names = {kind: [name for name in logged if name.startswith(f"{kind}/")] for kind in MONITORED}
    kinds = {kind: title for kind, title in MONITORED.items() if names[kind]}
    fig, axes = figure(11, 2.6, columns=max(len(kinds), 1))
    for axis, (kind, title) in zip(axes[0], kinds.items(), strict=False):
        colors = colormaps["viridis"](np.linspace(0, 0.9, len(names[kind])))
        for name, color in zip(names[kind], colors, strict=True):
            style = {"color": color, "linewidth": 0.8, "marker": ".", "markersize": 2}
            axis.plot(*_series(rows, name), **style, label=name.partition("/")[2])
        if kind in ("grad_norm", "update"):
            log_scale(axis)
        axis.set_title(title)
        axis.set_xlabel("step")
        if len(names[kind]) <= 8:
            axis.legend(frameon=False, fontsize=6)
    alarms = [f"Step {row['step']}: {text}." for row in rows for text in row.get("alarms", [])]
    return Panel("Training health", fig, " ".join(alarms) or "There were no alarms.", wide=True)


def features_panel(rows: Sequence[Mapping[str, Any]]) -> Panel | None:
    """What was measured of the model before, during and after training, and how much the samples' features differ."""
    measured, changes = measured_names(rows), first_and_last(rows)
    noted = {name: title for name, title in FEATURES.items() if f"features/{name}" in changes}
    if not measured and not noted:
        return None
    fig, axes = figure(11, 2.6, columns=bool(measured) + len(noted))
    left = list(axes[0])
    if measured:
        axis = left.pop(0)
        for name, color in zip(measured, cycle((BLUE, ORANGE, GREY, TEXT))):
            axis.plot(*_series(rows, name), "o-", color=color, markersize=3, label=shown_name(name))
            axis.axhline(changes[name][0], color=color, linestyle="--", linewidth=1)
        axis.set_title("accuracy" if all(name in PROBES for name in measured) else "measured")
        axis.legend(frameon=False, fontsize=7)
    for axis, (name, title) in zip(left, noted.items(), strict=True):
        axis.plot(*_series(rows, f"features/{name}"), color=BLUE, linewidth=0.8, marker=".", markersize=2)
        axis.set_title(title)
    for axis in axes[0]:
        axis.set_xlabel("step")
    values = "; ".join(f"{shown_name(name)}: {shown_change(name, changes[name])}" for name in measured)
    caption = f"Before the first step (dashed) and at the end: {values}." if measured else ""
    return Panel("Features", fig, caption, wide=True)


def measured_names(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """What a task measures of its model besides its objective: that is all that the row of step 0 has."""
    return [name for row in rows if row["step"] == 0 for name in row if name != "step"]


def first_and_last(rows: Sequence[Mapping[str, Any]]) -> dict[str, tuple[float, float]]:
    """The first and the last value of what was measured, and of the figures of the features."""
    names = [*measured_names(rows), *(f"features/{name}" for name in FEATURES)]
    logged = {name: _series(rows, name)[1] for name in names}
    return {name: (values[0], values[-1]) for name, values in logged.items() if values}


def shown_name(name: str) -> str:
    """How a figure that was measured is called on the page."""
    return PROBES.get(name, name)


def shown_change(name: str, values: tuple[float, float]) -> str:
    form = "{:.1%}" if name in PROBES else "{:.4g}"
    return " → ".join(form.format(value) for value in values)


def _series(rows: Sequence[Mapping[str, Any]], name: str) -> tuple[list[int], list[float]]:
    """The steps at which a value was logged, and the values."""
    logged = [row for row in rows if name in row]
    return [row["step"] for row in logged], [row[name] for row in logged]


def confusion_matrix(targets: np.ndarray, predictions: np.ndarray, labels: Sequence[str]) -> Panel:
    """Rows are the targets; each cell counts test samples."""
    from sklearn import metrics

    labels = [shortened(label) for label in labels]
    counts = metrics.confusion_matrix(targets, predictions, labels=range(len(labels)))
    fractions = counts / counts.sum(axis=1, keepdims=True).clip(min=1)
    side = min(max(3.5, 0.4 * len(labels)), 9)
    fig, [[axis]] = figure(side, side)
    axis.imshow(fractions, cmap="Blues", vmin=0, vmax=1)
    axis.grid(False)
    if len(labels) <= 30:
        labels = [literal(label) for label in labels]
        for (row, column), count in np.ndenumerate(counts):
            if count:
                color = "white" if fractions[row, column] > 0.5 else TEXT
                axis.text(column, row, str(count), ha="center", va="center", color=color, fontsize=8)
        axis.set_xticks(range(len(labels)), labels, rotation=0 if max(map(len, labels)) < 4 else 90)
        axis.set_yticks(range(len(labels)), labels)
    axis.set_xlabel("prediction")
    axis.set_ylabel("target")
    wrong = int((targets != predictions).sum())
    caption = f"{wrong:,} of {len(targets):,} test samples are wrong. Each row is the samples of one target class."
    real, predicted = counts.sum(axis=1), counts.sum(axis=0)
    favourite = int((predicted - real).argmax())
    if predicted[favourite] >= max(TOO_OFTEN * real[favourite], TOO_MANY + real[favourite]):
        caption += (
            f" The prediction is {literal(labels[favourite])!r} for {predicted[favourite]:,} samples; the class has "
            f"{real[favourite]:,}."
        )
    return Panel("Confusion matrix", fig, caption)


def per_class_metrics(targets: np.ndarray, predictions: np.ndarray, labels: Sequence[str]) -> Panel:
    from sklearn.metrics import precision_recall_fscore_support

    found: Any = precision_recall_fscore_support(
        targets,
        predictions,
        labels=range(len(labels)),
        zero_division=0,  # pyright: ignore[reportArgumentType]
    )
    rows = [
        (label, f"{precision:.1%}", f"{recall:.1%}", f"{f1:.1%}", f"{support:,}")
        for label, precision, recall, f1, support in zip(labels, *found, strict=True)
    ]
    return Panel("Per-class metrics", render_table(("class", "precision", "recall", "F1", "samples"), rows))


def per_label_metrics(
    targets: Float[Tensor, "n classes"], probabilities: Float[Tensor, "n classes"], labels: Sequence[str]
) -> Panel:
    """The average precision of each label of a multi-label task."""
    from sklearn.metrics import average_precision_score

    rows = []
    for label, target, column in zip(labels, targets.T > 0.5, probabilities.T, strict=True):
        precision = f"{average_precision_score(target.numpy(), column.numpy()):.1%}" if target.any() else "–"
        rows.append((label, precision, f"{int(target.sum()):,}"))
    return Panel("Per-label metrics", render_table(("label", "average precision", "samples"), rows))


def regression_panel(targets: Float[Tensor, "n"], predictions: Float[Tensor, "n"]) -> Panel:
    fig, [[axis]] = figure(4.5, 4)
    axis.plot(targets, predictions, ".", markersize=4, alpha=0.5)
    axis.axline((float(targets.mean()), float(targets.mean())), slope=1, color=GREY, linewidth=1)
    axis.set_xlabel("target")
    axis.set_ylabel("prediction")
    return Panel("Predictions", fig, "Each point is a test sample. On the line, the prediction equals the target.")


class Trial(NamedTuple):
    """Of a search: the values that were tried, and the score that they reached; more is better."""

    number: int
    values: Mapping[str, Any]
    score: float
    ended: bool
    """Early, with the score at that step."""


def trials_panels(trials: Sequence[Trial], logarithmic: Collection[str]) -> list[Panel]:
    """The scores in the order of the trials, and against each value that is searched. logarithmic: which of these."""

    def draw(axis: Axes, places: Sequence[Any]) -> None:
        for ended, color, label in ((False, BLUE, "finished"), (True, GREY, "ended early")):
            chosen = [(place, trial.score) for place, trial in zip(places, trials, strict=True) if trial.ended == ended]
            if chosen:
                face = "none" if ended else color
                axis.plot(*zip(*chosen, strict=True), "o", label=label, color=color, markerfacecolor=face)

    numbers = [trial.number for trial in trials]
    history, [[axis]] = figure(5.4, 3)
    draw(axis, numbers)
    best = np.maximum.accumulate([-np.inf if trial.ended else trial.score for trial in trials])
    axis.step(numbers, best, where="post", color=ORANGE, linewidth=1, label="best so far")
    axis.set_xlabel("trial")
    axis.set_ylabel("validation score")
    axis.legend(frameon=False)
    names, columns = list(trials[0].values), 3
    scores, axes = figure(5.4, 3 * -(-len(names) // columns), -(-len(names) // columns), min(len(names), columns))
    for name, axis in zip(names, axes.flat, strict=False):
        draw(axis, [trial.values[name] for trial in trials])
        axis.set_xlabel(name)
        if name in logarithmic:
            log_scale(axis, "x")
    for axis in axes.flat[len(names) :]:
        axis.axis("off")
    caption = "Of the validation set; the loss, where it is the score, is negative. A hollow point is a trial that was "
    caption += "ended early, at its last evaluation."
    return [Panel("Trials", history, caption), Panel("Scores by value", scores, caption)]
