"""report.html: one self-contained page about a run."""

import html
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from ..files import write_text
from .figures import _draw, literal


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
