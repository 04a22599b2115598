from dataclasses import dataclass

import numpy as np
import pytest
import torch

from core import UserError, attend, attend_reference
from core.sparse import KINDS, Axial, Causal, Dilated, Global, Local, Pattern, PowersOfTwo, Random, Window2d, make_plan

LINES = [
    Local(256),
    Local(100, exact=True),
    Dilated(128, 3),
    Dilated(20, step=70, exact=True),
    PowersOfTwo(),
    Random(2, seed=1),
    Local(128) | Global(3),
    PowersOfTwo() | Local(64) | Global(1),
    Local(64) & Causal(),
    (PowersOfTwo() | Global(2)) & Causal(),
    Local(64, exact=True) & Dilated(300, 2),
]
GRIDS = [Window2d(2), Window2d(3, exact=True), Axial(), Axial(exact=True), Window2d(1) | PowersOfTwo() | Global()]


@pytest.mark.parametrize("pattern", LINES + GRIDS, ids=str)
def test_text_and_pattern_are_inverse(pattern):
    assert Pattern.parse(str(pattern)) == pattern
    assert len({pattern, Pattern.parse(str(pattern))}) == 1


def test_a_kind_of_one_s_own_may_be_written_anew(monkeypatch):
    """As a cell of a notebook that is run again."""
    made = []
    for reach in (3, 9):

        @dataclass(frozen=True)
        class Mine(Local):
            window: int = reach
            exact: bool = True

        monkeypatch.setitem(KINDS, "Mine", Mine)
        q = torch.randn(1, 1, 100, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        torch.testing.assert_close(
            attend(q, q, q, pattern=Mine()), attend_reference(q, q, q, mask=Mine().dense(100)[None, None])
        )
        made.append(attend(q, q, q, pattern=Mine()))
    assert not torch.equal(*made)


@pytest.mark.parametrize("other", ["Global(1)", None, 3])
def test_a_pattern_is_joined_with_patterns_alone(other):
    for join in (lambda: Local(3) | other, lambda: Local(3) & other):
        with pytest.raises(TypeError):
            join()


@pytest.mark.parametrize(
    "text", ["", "Local", "Local()", "Lokal(3)", "Local(3) + Causal()", "__import__('os')", "Local('x')"]
)
def test_text_that_is_no_pattern_is_refused(text):
    with pytest.raises(UserError, match=r"is not a pattern|whole number"):
        Pattern.parse(text)


@pytest.mark.parametrize(
    "text",
    [
        "Local(True)",
        "Window2d(True)",
        "Random(True)",
        "Global(True)",
        "Global(1.5)",
        "Global(-1)",
        "Dilated(8, True)",
        "Random(2, -1)",
        "Random(2, 0.5)",
        "Random(2**70)",
        "Dilated(8, 1180591620717411303424)",
        "Random(1180591620717411303424)",
    ],
)
def test_numbers_that_no_pattern_can_have_are_refused(text):
    with pytest.raises(UserError, match=r"must be a whole number of at least|must be at most|is not a pattern"):
        Pattern.parse(text)


@pytest.mark.parametrize(
    "text", ["Local(4611686018427387904)", "Window2d(1099511627776)", "Random(4096)", "Dilated(9, 2147483648)"]
)
def test_the_largest_patterns_are_served(text):
    grid = (10, 13) if "2d" in text else None
    assert make_plan(Pattern.parse(text), 130, 0, grid).groups


@pytest.mark.parametrize("make", [lambda: Local(0), lambda: Window2d(-1), lambda: Dilated(8, 0), lambda: Random(0)])
def test_sizes_below_1_are_refused(make):
    with pytest.raises(UserError, match="must be a whole number of at least 1"):
        make()


def test_a_grid_pattern_needs_a_grid_and_no_single_tokens():
    with pytest.raises(UserError, match="the tokens are a sequence without a grid"):
        Axial().dense(100)
    with pytest.raises(UserError, match="joins tiles of a grid with single tokens"):
        (Axial() | Local(4, exact=True)).dense((10, 10))
    with pytest.raises(UserError, match="must not reach into a grid"):
        (Axial() | Global(2)).dense((10, 10), prefix=1)


def test_exact_patterns_mean_what_they_say():
    apart = (torch.arange(300)[:, None] - torch.arange(300)).abs()
    assert torch.equal(Local(100, exact=True).dense(300), apart <= 50)
    assert torch.equal(Dilated(20, 7, exact=True).dense(300), (apart % 7 == 0) & (apart <= 70))
    assert torch.equal(Causal().dense(300), torch.ones(300, 300, dtype=torch.bool).tril())
    rows, columns = np.divmod(np.arange(12 * 25), 25)
    down, right = np.abs(rows[:, None] - rows), np.abs(columns[:, None] - columns)
    assert np.array_equal(Window2d(3, exact=True).dense((12, 25)).numpy(), np.maximum(down, right) <= 3)
    assert np.array_equal(Axial(exact=True).dense((12, 25)).numpy(), (down == 0) | (right == 0))


@pytest.mark.parametrize(
    "blocks, exact", [(Local(200), Local(200, exact=True)), (Window2d(5), Window2d(5, exact=True))]
)
def test_blocks_cover_the_exact_pattern(blocks, exact):
    size = (17, 30) if blocks.on_grid else 700
    assert (blocks.dense(size) | ~exact.dense(size)).all()


def test_powers_of_two_reach_everything_in_log_steps():
    reach = PowersOfTwo().dense(64 * 33).float()
    total = reach
    for _ in range(5):
        total = ((total @ reach) > 0).float()
    assert (total > 0).all()
    assert reach.sum(dim=1).max() <= 64 * (2 * 6 + 1)


def test_prefix_and_global_tokens_see_and_are_seen():
    dense = (Local(64) | Global(3)).dense(400, prefix=1)
    assert dense.shape == (401, 401)
    assert dense[:3].all() and dense[:, :3].all() and not dense[3:, 3:].all()
    causal = ((Local(64) | Global(3)) & Causal()).dense(400)
    assert not causal.triu(1).any() and causal[:, :3].tril().equal(torch.ones(400, 3, dtype=torch.bool).tril())


def test_only_a_causal_pattern_keeps_global_tokens_from_later_ones():
    for pattern, causal in (
        (Global(2), False),
        (Global(2) | Global(3), False),
        (Causal() | Global(2), True),
        (Local(9) | Global(2), False),
        ((Local(9) | Global(2)) & Causal(), True),
        (Causal() | Local(9), False),
    ):
        assert pattern.causal == causal and pattern.dense(8)[0].sum() == (1 if causal else 8), pattern


@pytest.mark.parametrize("pattern", LINES + GRIDS, ids=str)
@pytest.mark.parametrize("length", [1, 63, 64, 129, 500])
def test_the_plan_holds_exactly_the_dense_relation(pattern, length):
    grid = (1 + length // 20, 20) if pattern.on_grid else None
    body = grid[0] * grid[1] if grid else length
    plan = make_plan(pattern, body + 1, 1, grid)
    n, block = plan.num_global, plan.layout.block
    relation = torch.zeros(body + 1, body + 1, dtype=torch.bool)
    relation[:n] = relation[:, :n] = True
    if plan.causal:
        relation = relation.tril()
    seen = []
    for group in plan.groups:
        for place, row in enumerate(group.rows.tolist()):
            seen.append(row)
            queries = plan.index[row * block : (row + 1) * block]
            keys = torch.cat(
                [plan.index[c * block : (c + 1) * block] for c in group.columns[place].tolist()] + [queries[:0]]
            )
            mask = torch.ones(block, len(keys), dtype=torch.bool)
            if group.mask is not None:
                mask = group.mask[min(place, len(group.mask) - 1)].expand(block, -1)
            assert (keys[mask.any(0)] >= 0).all()
            q, k = torch.nonzero(mask & (queries >= 0)[:, None] & (keys >= 0), as_tuple=True)
            assert not relation[queries[q] + n, keys[k] + n].any(), "a pair is computed twice"
            relation[queries[q] + n, keys[k] + n] = True
    assert sorted(seen) == list(range(plan.layout.blocks))
    assert torch.equal(relation, pattern.dense(grid or body, prefix=1))


def test_a_million_tokens_need_no_square():
    plan = make_plan(Local(256) | Global(1), 1_000_000)
    assert plan.density < 5e-4
    assert sum(group.columns.numel() for group in plan.groups) < 6 * plan.layout.blocks


@pytest.mark.parametrize(
    "pattern",
    [Local(100), Dilated(300, step=3), PowersOfTwo(), Random(2, seed=3), Local(70, exact=True) & Causal()],
    ids=str,
)
def test_more_tokens_change_nothing_among_the_first(pattern):
    assert torch.equal(pattern.dense(1000)[:500, :500], pattern.dense(500))


@pytest.mark.parametrize(
    "pattern", [Window2d(4), Axial(), Window2d(3, exact=True), PowersOfTwo() | Window2d(2)], ids=str
)
def test_more_columns_change_nothing_among_the_first(pattern):
    narrow, wide = pattern.dense((12, 30)), pattern.dense((12, 50))
    kept = (torch.arange(12)[:, None] * 50 + torch.arange(30)).flatten()
    assert torch.equal(wide[kept][:, kept], narrow)
