"""Compare runs: `python -m core.experiments.compare runs/*` prints a table and writes a page with it and curves."""

import html
import math
import os
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Annotated
from urllib.parse import quote

import tyro
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import PercentFormatter

from ..config import configclass
from ..errors import UserError
from ..files import reason
from .cli import predict_command
from .figures import GREY, figure, log_scale, smooth
from .report import Panel, write_report
from .runs import NOTHING, OF_A_RUN, Comparison, Run, Setting, is_drawable, make_comparisons, name_metrics, read_runs


@configclass
class Arguments:
    """What differs between runs and where it led: a table, and a page with the curves laid over each other."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Directories of runs; what else the shell's * finds is skipped."""
    out: Path | None = None
    """The page; compare.html in the directory that holds the runs by default."""


@dataclass(frozen=True)
class Line:
    """A row of a table."""

    cells: dict[str, str]
    worth: float
    """-inf: out of the contest."""
    color: str
    link: str = ""


def compare(arguments: Arguments) -> None:
    runs = read_runs(arguments.runs)
    home = Path(os.path.commonpath([run.path.resolve().parent for run in runs]))
    runs = [replace(run, name=os.path.relpath(run.path.resolve(), home)) for run in name_metrics(runs)]
    nearby = home.relative_to(Path.cwd()) if home.is_relative_to(Path.cwd()) else home
    out = arguments.out or nearby / "compare.html"
    if inside := next((run.path for run in runs if out.resolve().is_relative_to(run.path.resolve())), None):
        raise UserError(f"--out {out} is inside the run {inside}: name another file, which replaces none of the run's.")
    comparisons = make_comparisons(runs)
    cards = {"runs": str(len(runs)), "finished": str(sum(bool(run.summary) for run in runs))}
    panels, details = [], {}
    for comparison in comparisons:
        title = f"{comparison.title}: " if len(comparisons) > 1 else ""
        tables = {"runs": run_lines(comparison, out.parent)}
        if len(comparison.settings) < len(comparison.runs):
            tables = {"settings": setting_lines(comparison), **tables}
        panels.append(curves_panel(comparison, title))
        for name, lines in tables.items():
            print(f"{title}{name}\n{as_text(lines)}\n")
            panels.append(Panel(f"{title}{name.capitalize()}", as_html(lines), wide=True))
        first = next(iter(tables.values()))[0]
        if first.worth > -math.inf:
            cards |= {
                f"{title}{comparison.metric} of {next(iter(first.cells.values()))}": first.cells[comparison.metric]
            }
        same = {k: v for k, v in comparison.runs[0].settings.items() if k not in comparison.names}
        details |= {f"{title}what all share": {k: v for k, v in same.items() if k not in OF_A_RUN}}
    details |= {"Summaries": {run.name: run.summary or "not finished" for run in runs}}
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_report(out, f"{home.name}: {len(runs)} run{'s' * (len(runs) > 1)} compared", cards, panels, details)
    except OSError as error:
        raise UserError(f"{out} cannot be written ({reason(error)}): name another file with --out.") from None
    print(f"page: {out}")


def setting_lines(comparison: Comparison) -> list[Line]:
    """Mean and standard deviation over the seeds."""
    lines = []
    for setting in comparison.settings:
        results = setting.results
        mean = statistics.mean(results) if results else None
        spread = f" ± {comparison.show(statistics.stdev(results))}" if len(results) > 1 else ""
        cells = {"setting": setting.label, comparison.metric: comparison.show(mean) + spread, "n": str(len(results))}
        cells |= _costs([run for run in setting.runs if run.summary], comparison)
        lines.append(Line(cells, comparison.worth(mean), setting.color))
    return sorted(lines, key=lambda line: -line.worth)


def run_lines(comparison: Comparison, page: Path) -> list[Line]:
    lines = []
    for setting in comparison.settings:
        for run in setting.runs:
            cells = {"run": run.name if run.summary else f"{run.name} (not finished)"}
            cells |= {short: run.setting(name) for name, short in comparison.names.items()}
            done = run.summary.get("steps") or (run.rows[-1]["step"] if run.rows else 0)
            steps = f"{done:,}" if run.summary else f"{done:,} of {run.settings['train.steps']:,}"
            cells |= {comparison.metric: comparison.show(run.result), **_costs([run], comparison), "steps": steps}
            report = run.path / "report.html"
            link = quote(os.path.relpath(report.resolve(), page.resolve())) if report.exists() else ""
            lines.append(Line(cells, comparison.worth(run.result if run.summary else None), setting.color, link))
    return sorted(lines, key=lambda line: -line.worth)


def _costs(runs: Sequence[Run], comparison: Comparison) -> dict[str, str]:
    """Means over the runs: the baselines that they are held against, and what they took."""

    def mean(values: Sequence[float | int | None]) -> float | int | None:
        known = [value for value in values if value is not None]
        return statistics.mean(known) if known else None

    cells = {
        name: comparison.show(mean([(run.summary.get("baseline") or {}).get(name) for run in runs]))
        for name in comparison.baselines
    }
    seconds, parameters = mean([run.seconds for run in runs]), mean([run.summary.get("parameters") for run in runs])
    cells["time"] = NOTHING if seconds is None else str(timedelta(seconds=round(seconds)))
    cells["parameters"] = NOTHING if parameters is None else f"{parameters:,.0f}"
    if any(run.series("tokens_per_second") for run in comparison.runs):
        speed = mean([statistics.median(found.values()) for run in runs if (found := run.series("tokens_per_second"))])
        cells["tokens/s"] = NOTHING if speed is None else f"{speed:,.0f}"
    return cells


def _best(lines: Sequence[Line]) -> float:
    """The worth that is marked; none where there is no contest."""
    worths = [line.worth for line in lines if line.worth > -math.inf]
    return max(worths) if len(worths) > 1 else math.inf


def as_text(lines: Sequence[Line]) -> str:
    """Columns of text; * marks the best."""
    best = _best(lines)
    rows = [list(lines[0].cells), *(list(line.cells.values()) for line in lines)]
    rows = [[cell if len(cell) <= 48 else f"{cell[:47]}…" for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    marks = [" ", *("*" if line.worth == best else " " for line in lines)]
    return "\n".join(
        f"{mark} {row[0]:<{widths[0]}}"
        + "".join(f"  {cell:>{width}}" for cell, width in zip(row[1:], widths[1:], strict=True))
        for mark, row in zip(marks, rows, strict=True)
    )


def as_html(lines: Sequence[Line]) -> str:
    best = _best(lines)
    rows = ["<tr>" + "".join(f"<th>{html.escape(name)}</th>" for name in lines[0].cells) + "</tr>"]
    for line in lines:
        first, *rest = map(html.escape, line.cells.values())
        first = f"<a href='{line.link}'>{first}</a>" if line.link else first
        first = f"<span style='color:{line.color}'>●</span> {first}"
        if line.worth == best:
            first = f"<b>{first} ★ best</b>"
        rows.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in (first, *rest)) + "</tr>")
    return f"<div style='overflow-x:auto; white-space:nowrap'><table>{''.join(rows)}</table></div>"


def curves_panel(comparison: Comparison, title: str) -> Panel:
    """Training loss and test metric against the step, and where each setting ended."""
    labels = [setting.label for setting in comparison.settings]
    columns = max(1, min(len(labels), 140 // (max(map(len, labels)) + 8)))
    height = 3 + 0.19 * math.ceil(len(labels) / columns)
    fig, [[loss, metric, ends]] = figure(11, height, columns=3, width_ratios=(2, 2, 1))
    for place, setting in enumerate(comparison.settings):
        _draw(loss, setting, [_smoothed(run.series("loss")) for run in setting.runs])
        _draw(metric, setting, [run.series(f"test_{comparison.metric}") for run in setting.runs], marker=".")
        results = setting.results
        ends.plot(results, [place] * len(results), "o", color=setting.color, markersize=4, alpha=0.6)
        if results:
            ends.plot(statistics.mean(results), place, "|", color=setting.color, markersize=12, markeredgewidth=2)
    standards = {pair for run in comparison.runs for pair in (run.summary.get("baseline") or {}).items()}
    for name, value in standards if len(standards) == 1 and is_drawable(next(iter(standards))[1]) else ():
        metric.axhline(value, color=GREY, linestyle="--", linewidth=1, label=name)
        metric.legend(frameon=False, fontsize=7)
        ends.axvline(value, color=GREY, linestyle="--", linewidth=1)
    loss.set_title("training loss, smoothed")
    log_scale(loss)
    metric.set_title(f"test {comparison.metric}")
    ends.set_title("at the end")
    ends.set_ylim(len(labels) - 0.5, -0.5)
    ends.set_yticks([])
    for axis in (loss, metric):
        axis.set_xlabel("step")
    if comparison.percent:
        metric.yaxis.set_major_formatter(PercentFormatter(1))
        ends.xaxis.set_major_formatter(PercentFormatter(1))
    handles = [Line2D([], [], color=setting.color, linewidth=2) for setting in comparison.settings]
    fig.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False, fontsize=7)
    seeded = any(len(setting.runs) > 1 for setting in comparison.settings)
    return Panel(f"{title}Curves", fig, "Thin: each seed; thick: their mean." if seeded else "", wide=True)


def _draw(axis: Axes, setting: Setting, curves: Sequence[dict[int, float]], marker: str = "") -> None:
    """One curve a run; of several, thin ones and their mean over the steps that all have."""
    several = len(curves) > 1
    for curve in curves:
        width, alpha = (0.6, 0.6) if several else (1.4, 1.0)
        style = {"marker": marker, "markersize": 3, "linewidth": width, "alpha": alpha}
        axis.plot(list(curve), list(curve.values()), color=setting.color, **style)
    if several:
        mean = {step: statistics.mean(c[step] for c in curves) for step in curves[0] if all(step in c for c in curves)}
        axis.plot(list(mean), list(mean.values()), color=setting.color, linewidth=1.6)


def _smoothed(curve: dict[int, float]) -> dict[int, float]:
    return dict(zip(curve, smooth(list(curve.values())), strict=True))


if __name__ == "__main__":
    predict_command("python -m core.experiments.compare", Arguments, compare, to_the_end=True)
