"""Compare runs: `python -m core.experiments.compare runs/*` prints tables, and writes a page with them and curves."""

import math
import os
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Annotated

import tyro
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import PercentFormatter

from ..config import configclass
from ..errors import UserError
from ..files import reason
from .cli import predict_command
from .comparison import Comparison, as_html, as_text, make_comparisons
from .figures import GREY, figure, log_scale, smooth
from .report import Panel, write_report
from .runs import is_drawable, read_runs


@configclass
class Arguments:
    """Show the settings and results of runs side by side: in tables, and on a page with the training curves."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Directories of runs; other files and directories are skipped."""
    out: Path | None = None
    """The page; compare.html in the directory that holds the runs by default."""


def compare(arguments: Arguments, further: Sequence[Panel] = (), chosen: Collection[str] | None = None) -> None:
    """further: panels that the page has as well. chosen: see `make_comparisons`."""
    runs = read_runs(arguments.runs)
    home = Path(os.path.commonpath([run.path.resolve().parent for run in runs]))
    runs = [replace(run, name=os.path.relpath(run.path.resolve(), home)) for run in runs]
    nearby = home.relative_to(Path.cwd()) if home.is_relative_to(Path.cwd()) else home
    out = arguments.out or nearby / "compare.html"
    if inside := next((run.path for run in runs if out.resolve().is_relative_to(run.path.resolve())), None):
        raise UserError(f"--out {out} is inside the run {inside}: name another file, which replaces none of the run's.")
    comparisons = make_comparisons(runs, chosen)
    figures = {"runs": str(len(runs)), "finished": str(sum(run.finished for run in runs))}
    panels, details = [*further], {}
    for comparison in comparisons:
        title = f"{comparison.title}: " if len(comparisons) > 1 else ""
        tables = {"runs": comparison.run_rows(out.parent)}
        if len(comparison.groups) < len(comparison.runs):
            tables = {"settings": comparison.group_rows(), **tables}
        panels.append(curves_panel(comparison, title))
        for name, rows in tables.items():
            print(f"{title}{name}\n{as_text(rows)}\n")
            panels.append(Panel(f"{title}{name.capitalize()}", as_html(rows), wide=True))
        best = next(iter(tables.values()))[0]
        if best.score > -math.inf:
            result = f"test {comparison.metric}"
            figures[f"{title}{result} of {next(iter(best.cells.values()))}"] = best.cells[result]
        details[f"{title}Shared settings"] = comparison.shared
    details["Summaries"] = {run.name: run.summary or "not finished" for run in runs}
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_report(out, f"{home.name}: {len(runs)} run{'s' * (len(runs) > 1)} compared", figures, panels, details)
    except OSError as error:
        raise UserError(f"{out} cannot be written ({reason(error)}): name another file with --out.") from None
    print(f"page: {out}")


def curves_panel(comparison: Comparison, title: str) -> Panel:
    """Training loss and validation metric against the step, and the final results of each group."""
    groups, colors = comparison.groups, comparison.colors
    labels = list(groups)
    columns = max(1, min(len(labels), 140 // (max(map(len, labels)) + 8)))
    height = 3 + 0.19 * math.ceil(len(labels) / columns)
    fig, [[loss, metric, final]] = figure(11, height, columns=3, width_ratios=(2, 2, 1))
    for place, (color, runs) in enumerate(zip(colors, groups.values(), strict=True)):
        _draw(loss, color, [_smoothed(run.series("loss")) for run in runs])
        _draw(metric, color, [run.evaluations for run in runs], marker=".")
        results = [result for result in (run.final_result("test") for run in runs) if result is not None]
        final.plot(results, [place] * len(results), "o", color=color, markersize=4, alpha=0.6)
        if results:
            final.plot(mean(results), place, "|", color=color, markersize=12, markeredgewidth=2)
    baselines = {pair for run in comparison.runs for pair in run.baselines.items()}
    for name, value in baselines if len(baselines) == 1 else ():
        if is_drawable(value):
            metric.axhline(value, color=GREY, linestyle="--", linewidth=1, label=name)
            metric.legend(frameon=False, fontsize=7)
            final.axvline(value, color=GREY, linestyle="--", linewidth=1)
    loss.set_title("training loss, smoothed")
    log_scale(loss)
    metric.set_title(f"{comparison.splits[0]} {comparison.metric}")
    final.set_title(f"final test {comparison.metric}")
    final.set_ylim(len(labels) - 0.5, -0.5)
    final.set_yticks([])
    for axis in (loss, metric):
        axis.set_xlabel("step")
    if comparison.percent:
        metric.yaxis.set_major_formatter(PercentFormatter(1))
        final.xaxis.set_major_formatter(PercentFormatter(1))
    handles = [Line2D([], [], color=color, linewidth=2) for color in colors]
    fig.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False, fontsize=7)
    several = any(len(runs) > 1 for runs in groups.values())
    caption = "Thin lines are single runs; thick lines are means over seeds." if several else ""
    return Panel(f"{title}Training curves", fig, caption, wide=True)


def _draw(axis: Axes, color: str, curves: Sequence[dict[int, float]], marker: str = "") -> None:
    """A curve for each run; if there are several, thin ones, and their mean over the steps that all of them have."""
    several = len(curves) > 1
    width, alpha = (0.6, 0.6) if several else (1.4, 1.0)
    for curve in curves:
        axis.plot(*_points(curve), color=color, marker=marker, markersize=3, linewidth=width, alpha=alpha)
    if several:
        steps = [step for step in curves[0] if all(step in curve for curve in curves)]
        axis.plot(steps, [mean(curve[step] for curve in curves) for step in steps], color=color, linewidth=1.6)


def _points(curve: dict[int, float]) -> tuple[list[int], list[float]]:
    return list(curve), list(curve.values())


def _smoothed(curve: dict[int, float]) -> dict[int, float]:
    return dict(zip(curve, smooth(list(curve.values())), strict=True))


if __name__ == "__main__":
    predict_command("python -m core.experiments.compare", Arguments, compare, to_the_end=True)
