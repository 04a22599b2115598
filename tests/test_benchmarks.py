"""Every row of the benchmarks builds and runs, tiny and once; nothing is said about time."""

from dataclasses import replace
from functools import partial
from importlib import import_module
from operator import mul

import pytest
import torch

from benchmarks import __main__ as command
from benchmarks import charts, page, scoreboard
from benchmarks.limit import operations
from benchmarks.memory import peak_memory
from benchmarks.peers import PEERS
from benchmarks.row import Goal, Group, Row, Run
from benchmarks.timing import Timing
from core import attend
from core.sparse import Local, make_plan
from core.testing import check
from core.training.processes import has_fast_bf16

TINY = Run(tiny=True, bf16=True)


def row(ours=(2.0, 1.0, 4.0), theirs=(2.0, 2.0, 2.0), **fields) -> Row:
    return Row(what="a", work="b | c", peer="d 1", ours=Timing(ours), theirs=theirs and Timing(theirs), **fields)


@pytest.mark.parametrize("name", command.GROUPS)
def test_rows_run(name, monkeypatch):
    module = import_module(f"benchmarks.{name}")
    if name == "startup":  # torch would take seconds
        monkeypatch.setattr(module, "FIRST", "math")
        monkeypatch.setattr(module, "PEERS", {"json": ("csv", "torch")})
    rows = list(module.rows(TINY))
    assert rows
    assert all(row.ours.median > 0 and (row.limit is None or row.limit > 0) for row in rows)
    labels = [(row.what, row.work, row.peer) for row in rows]
    assert len(set(labels)) == len(labels)


def test_short_of_goals():
    assert row().short == []
    assert row().ratio == (1.0, 0.75, 1.5)
    found = row(limit=1.0, memory=(9.0, 10.0), goal=Goal(ratio=1.5, limit=0.9, memory=0.8, seconds=1.5))
    assert [reason.split()[0] for reason in found.short] == ["ratio", "50.0%", "memory", "2.00"]
    assert row(theirs=None).ratio is None
    assert row(ours=(1.0,), theirs=(2.0,)).ratio == (2.0, 2.0, 2.0)


def test_page_is_read_back_and_one_group_measured_anew(tmp_path, monkeypatch):
    out = tmp_path / "page.md"
    kept = Group(text="Text.", machine="a machine", rows=(row(length=1024, memory=(1.0, None)), row(theirs=None)))
    page.write(out, {"vit": kept})
    assert page.read(out) == {"vit": kept}
    monkeypatch.setattr(charts, "draw_patterns", lambda file: None)  # takes seconds
    monkeypatch.setattr(command, "measure", lambda name, run: replace(kept, text="Anew.", machine=str(run.rounds)))
    command.main(["ast", "--rounds", "3", "--out", str(out)])
    kind = command.KINDS[has_fast_bf16("cpu")]
    assert page.read(out) == {"vit": kept, f"ast{kind}": replace(kept, text="Anew.", machine="3")}
    text = out.read_text()
    assert "b \\| c" in text and "2 of 2 rows" in text
    assert all((tmp_path / "pictures" / name).exists() and name in text for name in charts.CHARTS)


@pytest.mark.parametrize("arguments", [["vitt"], ["--rounds", "0"]])
def test_what_is_wrong_is_told_in_a_sentence(arguments, capsys):
    with pytest.raises(SystemExit):
        command.main(arguments)
    assert capsys.readouterr().err.count("\n") == 1


def test_operations_are_those_of_products_and_pairs_kept():
    a = torch.randn(8, 16, requires_grad=True)
    assert operations(lambda: a @ torch.randn(16, 4)) == 2 * 8 * 16 * 4
    q = torch.randn(1, 2, 512, 16)
    pairs = 2 * 512**2
    assert operations(lambda: attend(q, q, q)) == 4 * pairs * 16
    density = make_plan(Local(128), 512).density
    assert operations(lambda: attend(q, q, q, pattern=Local(128))) == pytest.approx(density * 4 * pairs * 16)
    q.requires_grad_()  # five products backward: one computes the logits once more
    for pattern, kept in ((None, 1.0), (Local(128), density)):
        found = operations(lambda pattern=pattern: attend(q, q, q, pattern=pattern).sum().backward())
        assert found == pytest.approx(kept * (4 + 10) * pairs * 16)


def test_peak_memory():
    size = 50 * 2**20
    assert peak_memory(partial, mul, b"x", size) == pytest.approx(size, rel=0.2)


def test_the_scoreboard_asks_everybody():
    one = {"loop": "gradients-are-of-their-own-samples"}
    found = {name: check(each, [one.get(each.kind, "shapes-and-dtypes")]).results for name, each in PEERS.items()}
    broken = {name for name, [result] in found.items() if result.status != "passed"}
    assert broken == {"open_clip_max_pooler"}  # docs/findings/open-clip-max-pooler.md
    text = scoreboard.page({name: scoreboard.record(results, 1.0) for name, results in found.items()})
    for name, subject in PEERS.items():
        passed, failed = (0, 1) if name in broken else (1, "")
        assert f"| {subject.name} | {passed} | {failed} | `python -m core.testing benchmarks.peers:{name}` |" in text
