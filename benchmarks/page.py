"""The page: rows as lines of text and of Markdown, kept as JSON beside it."""

import json
from collections.abc import Mapping
from pathlib import Path

from . import limit
from .charts import CHARTS
from .row import Group, Row

COLUMNS = ("what", "work", "peer", "ours", "theirs", "ratio (quartiles)", "of the limit", "memory, MiB", "goals")
HEAD = """# Benchmarks

Each row compares our time with that of a peer for the same work, on the CPU unless the heading names another device.
Both run in one process, by turns.

| column | |
|---|---|
| what, work | the model or the call, and what is done with it |
| peer | the library that does the same, and its version |
| ours, theirs | the median time of each |
| ratio (quartiles) | their time divided by ours, so that more than 1 means that we are faster: median and quartiles |
| of the limit | our share of the speed that the hardware allows (see below), and the time at that speed |
| memory, MiB | the most in use during the work, less that before it: ours / theirs, each in its own process |
| goals | whether the row meets its goals; where it is short of one, by how much |

The process that measures time keeps the memory that it frees, as training on a CPU does here. Otherwise the times would
include those that the system takes to provide it again. The groups attention and long were measured in this way, the
others before it was introduced.

{limit}

`python -m benchmarks` measures all of it and writes this page, `python -m benchmarks vit bert` these groups anew.
"""


def write(out: Path, groups: Mapping[str, Group]) -> None:
    """The page, and beside it the JSON that `read` reads."""
    out.parent.mkdir(parents=True, exist_ok=True)
    data = {name: group.as_json() for name, group in groups.items()}
    out.with_suffix(".json").write_text(json.dumps(data, indent=1) + "\n")
    sections = [HEAD.format(limit=limit.TEXT), _summary(groups)]
    for file, text in CHARTS.items():
        if (out.parent / "pictures" / file).exists():
            sections.append(f"![{text}](pictures/{file})\n")
    sections += [section(name, group) for name, group in groups.items()]
    out.write_text("\n".join(sections))


def read(out: Path) -> dict[str, Group]:
    file = out.with_suffix(".json")
    return {name: Group.from_json(data) for name, data in json.loads(file.read_text()).items()} if file.exists() else {}


def section(name: str, group: Group) -> str:
    lines = [f"## {name}\n", group.text, "", f"{group.machine}.\n", _line(COLUMNS), "|---" * len(COLUMNS) + "|"]
    return "\n".join([*lines, *(_line(cells(row)) for row in group.rows), ""])


def cells(row: Row) -> tuple[str, ...]:
    ratio = "" if row.ratio is None else "{:.3g} ({:.3g} - {:.3g})".format(*row.ratio)
    memory = "" if row.memory is None else " / ".join(f"{m / 2**20:,.0f}" for m in row.memory if m is not None)
    return (
        row.what,
        row.work,
        row.peer,
        duration(row.ours.median),
        "left out" if row.theirs is None else duration(row.theirs.median),
        ratio,
        "" if row.share is None else f"{row.share:.0%} of {duration(row.limit)}",
        memory,
        "short: " + "; ".join(row.short) if row.short else "met" if row.theirs else "",
    )


def line_of_text(row: Row) -> str:
    what, work, peer, ours, theirs, ratio, limit, memory, goals = cells(row)
    figures = f"{ours:>8}{theirs:>9}  {ratio:<22}{limit:<18}{memory and memory + ' MiB':<20}"
    return f"{what}; {work}; {peer}\n    {figures}{goals}"


def duration(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1e3:.3g} ms"


def _line(values: tuple[str, ...]) -> str:
    return "| " + " | ".join(value.replace("|", "\\|") for value in values) + " |"


def _summary(groups: Mapping[str, Group]) -> str:
    rows = [row for group in groups.values() for row in group.rows if row.theirs]
    return f"{sum(not row.short for row in rows)} of {len(rows)} rows meet their goals.\n"
