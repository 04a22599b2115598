"""report.html: one self-contained page about a run. All HTML comes from Jinja2 templates, which escape their values."""

import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure

from ..files import write_text
from .figures import draw_figure, literal

TEMPLATES = Path(__file__).parent / "templates"
ENVIRONMENT = Environment(
    loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
)


@dataclass
class Panel:
    """A titled part of the page. Its content is a figure, HTML (Markup), or text."""

    title: str
    content: Figure | Markup | str
    caption: str = ""
    wide: bool = False


def render(source: str, **values: Any) -> Markup:
    """The HTML of a template, given by its source. Values are escaped, except those that are HTML already."""
    return Markup(ENVIRONMENT.from_string(source).render(values))


def render_table(columns: Sequence[str], rows: Iterable[Sequence[str | Markup]]) -> Markup:
    return Markup(ENVIRONMENT.get_template("table.html").render(columns=columns, rows=rows))


def write_report(
    path: Path,
    title: str,
    figures: Mapping[str, str],
    panels: Sequence[Panel],
    details: Mapping[str, Any],
) -> None:
    """figures: the headline's values by their names. details: shown as JSON at the end, folded."""
    page = ENVIRONMENT.get_template("report.html").render(
        title=title,
        figures=figures,
        panels=[(panel, _html(panel.content)) for panel in panels],
        details={name: json.dumps(value, indent=2) for name, value in details.items()},
    )
    write_text(path, literal(page))


def _html(content: Figure | Markup | str) -> Markup | str:
    if not isinstance(content, Figure):
        return content
    buffer = io.StringIO()
    no_metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    draw_figure(content, buffer, format="svg", transparent=True, metadata=no_metadata)
    text = buffer.getvalue()
    return Markup(text[text.index("<svg") :])
