"""Names in figures and pages stand for themselves, whatever is in them."""

import os
import warnings
from html.parser import HTMLParser

import matplotlib
import numpy as np
import pytest

from core.experiments.comparison import Row, as_html
from core.experiments.figures import figure, literal, save_figure
from core.experiments.plots import confusion_matrix, features_panel, first_and_last, per_class_metrics
from core.experiments.report import Panel, write_report

NAMES = {
    "money": ("usd_$0_$50", "usd_$50_$100"),
    "formula": ("$\\frac{$", "$\\undefined{x}$"),
    "one dollar": ("$", "a\\$b"),
    "other scripts": ("猫", "кот🐈"),
    "bytes": (os.fsdecode(b"\xff\xfe"), "a\udc80"),
    "control": ("a\tb\x01", "two\nlines"),
    "markup": ("<script>alert(1)</script>", "--><b onclick='x'>&amp;\"</b>"),
    "empty": ("", "_hidden"),
}


def everywhere(names):
    """A figure with names wherever text can be."""
    fig, [[axis, other]] = figure(6, 3, columns=2)
    axis.plot([0, 1], label=names[0])
    axis.set(title=names[0], xlabel=names[1], ylabel=names[0])
    axis.text(0, 0, names[0])
    axis.annotate(names[1], (0.5, 0.5))
    axis.legend(axis.lines, names[:1], title=names[1])
    other.set_xticks([0, 1], [literal(name) for name in names])
    other.bar([0, 1], [1, 2])
    fig.suptitle(names[1])
    fig.legend(axis.lines, names[1:])
    return fig


@pytest.mark.parametrize("kind", NAMES)
def test_names_in_figures_are_no_formulas(kind, tmp_path):
    names = NAMES[kind]
    targets, found = np.array([0, 1, 1]), np.array([0, 1, 0])
    panels = [
        Panel("here", everywhere(names)),
        confusion_matrix(targets, found, names),
        per_class_metrics(targets, found, names),
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        save_figure(everywhere(names), tmp_path / "a.png")
        write_report(tmp_path / "a.html", names[0], {names[0]: names[1]}, panels, {names[1]: list(names)})
    assert (tmp_path / "a.png").stat().st_size > 1000 and (tmp_path / "a.html").read_text(encoding="utf-8")
    assert matplotlib.rcParams["text.parse_math"]  # other figures of the process are as before


@pytest.mark.parametrize("wrong, said", [(40, True), (19, False), (9, False)])
def test_a_class_that_is_predicted_too_often_is_named(wrong, said):
    """Of 20 samples each: predicted for twice as many or more is said, and for fewer is not."""
    targets = np.repeat([0, 1, 2, 3], 20)
    found = targets.copy()
    found[:wrong] = 3
    caption = confusion_matrix(targets, found, ("zero", "one", "two", "six")).caption
    expected = f"The prediction is 'six' for {20 + wrong} samples; the class has 20."
    assert (expected in caption) == said == ("The prediction" in caption)


def test_text_is_drawn_as_it_is(tmp_path):
    """A price is drawn as the same letters in a face in which formulas would be set otherwise."""
    drawn = []
    for word in ("$x$", r"\$x\$", "x"):
        fig, [[axis]] = figure(2, 1)
        axis.axis("off")
        axis.text(0, 0, word)
        save_figure(fig, tmp_path / "a.png")
        drawn.append((tmp_path / "a.png").read_bytes())
    assert len(set(drawn)) == 3


class Elements(HTMLParser):
    def __init__(self, page):
        super().__init__()
        self.found = []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))


def test_names_in_pages_are_no_markup(tmp_path):
    first, second = NAMES["markup"]
    panels = [Panel(first, everywhere((first, second)), caption=second)]
    panels += [per_class_metrics(np.array([0, 1]), np.array([0, 1]), (first, second))]
    panels += [Panel("compared", as_html([Row({first: second, second: first}, 1.0, "#000000", second)]))]
    write_report(tmp_path / "a.html", first, {first: second}, panels, {first: second})
    elements = Elements((tmp_path / "a.html").read_text(encoding="utf-8")).found
    assert "script" not in {tag for tag, _ in elements} and not any("onclick" in given for _, given in elements)


def test_a_picture_is_written_whole_or_not_at_all(tmp_path):
    (tmp_path / "a.png").write_text("before")
    fig, [[axis]] = figure(2, 1)
    axis.plot([0, 1])
    axis.get_figure().draw = lambda renderer: (_ for _ in ()).throw(OSError("the disk is full"))
    with pytest.raises(OSError, match="the disk is full"):
        save_figure(fig, tmp_path / "a.png")
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"] and (tmp_path / "a.png").read_text() == "before"


ROWS = [
    {"step": 0, "probe_linear": 0.25, "recall": 3.0},
    {"step": 1, "loss": 1.0, "features/spread": 0.5, "features/rank": 4.0, "features/cosine": 0.9},
    {
        "step": 4,
        "features/spread": 0.75,
        "features/rank": 9.5,
        "features/cosine": 0.5,
        "probe_linear": 0.5,
        "recall": 4,
    },
    {"step": 5, "features/spread": 0.25, "features/rank": 2.0, "features/cosine": 0.75, "recall": 4.5},
]


def test_features_are_shown_over_the_steps():
    panel = features_panel(ROWS)
    measured, spread, rank, cosine = panel.content.axes
    lines = {line.get_label(): line for line in measured.lines}
    assert lines["linear probe"].get_xydata().tolist() == [[0, 0.25], [4, 0.5]]
    assert {0.25, 3.0} <= {line.get_ydata()[0] for line in measured.lines if line.get_linestyle() == "--"}
    for axis, name in ((spread, "spread"), (rank, "rank"), (cosine, "cosine")):
        expected = [[row["step"], row[f"features/{name}"]] for row in ROWS[1:]]
        assert axis.lines[0].get_xydata().tolist() == expected
    assert "linear probe: 25.0% → 50.0%; recall: 3 → 4.5" in panel.caption


def test_only_what_was_logged_is_shown():
    assert features_panel([{"step": 1, "loss": 2.0}]) is None and features_panel([]) is None
    assert len(features_panel(ROWS[1:]).content.axes) == 3 and len(features_panel(ROWS[:1]).content.axes) == 1
    assert first_and_last(ROWS) == {
        "probe_linear": (0.25, 0.5),
        "recall": (3.0, 4.5),
        "features/spread": (0.5, 0.25),
        "features/rank": (4.0, 2.0),
        "features/cosine": (0.9, 0.75),
    }
