"""The charts of the benchmarks page and of the README."""

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

from core.experiments.figures import figure, save_figure
from core.sparse import Axial, Dilated, Global, Local, PowersOfTwo, Random, Window2d

from .row import Group, Row

CHARTS = {
    "ratios.png": "How many times as fast as each peer models are, with quartiles",
    "scaling.png": "Time and memory of dense and sparse attention against length",
}

MODELS = ("vit", "ast", "bert", "encoder", "sparse", "ragged", "lora")  # groups
WITH_BF16 = " on a CPU with bf16"


def draw(folder: Path, groups: Mapping[str, Group]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    draw_ratios(folder / "ratios.png", groups)
    by_length = ([row for row in group.rows if row.length] for group in groups.values())
    if long := next(filter(None, by_length), []):  # of one machine
        draw_scaling(folder / "scaling.png", long)
    if not (patterns := folder / "patterns.png").exists():
        draw_patterns(patterns)


def draw_ratios(file: Path, groups: Mapping[str, Group]) -> None:
    """Whole models beside other libraries, on one kind of CPU: with bf16 arithmetic where that was measured."""
    chosen = [f"{name}{WITH_BF16}" if f"{name}{WITH_BF16}" in groups else name for name in MODELS]
    shown = [
        (number, row)
        for number, name in enumerate(chosen)
        for row in (groups[name].rows if name in groups else ())
        if row.ratio and not row.length and not row.peer.startswith("our")
    ]
    fig, [[axis]] = figure(9, 0.6 + 0.21 * max(len(shown), 1))
    for place, (number, row) in enumerate(shown):
        middle, low, high = row.ratio
        spread = [[middle - low], [high - middle]]
        axis.errorbar(middle, place, xerr=spread, fmt="o", color=f"C{number % 10}", markersize=4, capsize=2)
    axis.axvline(1, color="black", linewidth=0.8)
    labels = [f"{row.what}; {row.work}; {row.peer}" for _, row in shown]
    axis.set_yticks(range(len(shown)), labels, fontsize=6)
    axis.set(xscale="log", ylim=(len(shown) - 0.5, -0.5), xlabel="times as fast as the peer (median, quartiles)")
    axis.set_xticks((0.5, 1, 2, 3, 4, 6), ("0.5", "1", "2", "3", "4", "6"))
    axis.minorticks_off()
    axis.grid(alpha=0.3, axis="x")
    save_figure(fig, file)


def draw_scaling(file: Path, rows: list[Row]) -> None:
    seconds: dict[str, dict[int, float]] = defaultdict(dict)
    memory: dict[str, dict[int, float]] = defaultdict(dict)
    for row in rows:
        sides = [(row.what.rpartition(", ")[0], row.ours, 0)]
        if row.theirs:
            sides.append((row.peer, row.theirs, 1))
        for name, timing, side in sides:
            seconds[name][row.length] = timing.median
            if row.memory and row.memory[side]:
                memory[name][row.length] = row.memory[side] / 2**20
    fig, [axes] = figure(9, 3.6, columns=2)
    lengths = sorted({row.length for row in rows})
    titles = "seconds, forward + backward", "peak memory above the inputs, MiB"
    for axis, found, title in zip(axes, (seconds, memory), titles, strict=True):
        for name, values in found.items():
            style = "o-" if name in {row.what.rpartition(", ")[0] for row in rows} else "^--"
            axis.plot(values.keys(), values.values(), style, label=name, markersize=4)
        axis.set(xlabel="tokens", title=title, xscale="log")
        axis.set_yscale("log")
        axis.set_xticks(lengths, [f"{n // 1024}k" for n in lengths])
        axis.minorticks_off()
        axis.yaxis.set_major_formatter("{x:g}")
        axis.grid(alpha=0.3)
    axes[0].legend(frameon=False, fontsize=8)
    save_figure(fig, file)


def draw_patterns(file: Path) -> None:
    shown = [
        (Local(256), 1024),
        (Global(64) | Local(128), 1024),
        (PowersOfTwo(), 2048),
        (Dilated(512, step=3), 1024),
        (Random(3) | Local(64), 1024),
        (Window2d(8), (32, 32)),
        (Axial(), (32, 32)),
        (Axial(exact=True), (16, 16)),
    ]
    fig, axes = figure(12, 6.4, 2, 4)
    for axis, (pattern, size) in zip(axes.flat, shown, strict=True):
        pattern.show(size, axis=axis)
        axis.grid(False)
    save_figure(fig, file)
