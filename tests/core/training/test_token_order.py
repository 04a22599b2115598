"""Steps by tokens: what a step holds, runs that stop or are killed, and what is refused."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from points import Points, build, collate
from processes import SERVER
from sequences import Reader, Sequences, read, read_until_killed

from core import Classification, UserError
from core.training import Task, TrainConfig, fit
from core.training.sampling import MicroBatches, Order
from core.training.throughput import TIMED
from core.training.token_order import TokenOrder
from core.training.tracking import read_metrics

COUNTS = st.lists(st.integers(1, 40), min_size=1, max_size=60)


def order_of(counts, seed, budget, parts=1):
    return TokenOrder(seed, np.array(counts, dtype=np.int64), budget, parts)


@settings(deadline=None, max_examples=60, derandomize=True)
@given(COUNTS, st.integers(0, 2**31), st.integers(0, 200), st.integers(1, 8))
def test_a_step_is_as_full_as_the_budget_allows(counts, seed, more, steps):
    """The stream of `Order`, cut where the next sample would exceed the budget; steps may span many epochs."""
    budget = max(counts) + more
    order = order_of(counts, seed, budget)
    cut = [order.step(step) for step in range(steps + 1)]
    for keys, (following, *_) in pairwise(cut):
        tokens = sum(counts[index] for _, index in keys)
        assert keys and tokens <= budget < tokens + counts[following[1]]
    stream = [key for keys in cut for key in keys]
    assert stream == Order(seed, len(counts), len(stream)).step(0)
    for epoch in range(len(stream) // len(counts)):
        assert sorted(index for e, index in stream if e == epoch) == list(range(len(counts)))


@settings(deadline=None, max_examples=60, derandomize=True)
@given(COUNTS, st.integers(0, 200), st.integers(1, 4), st.integers(1, 4), st.integers(0, 8))
def test_a_step_does_not_depend_on_how_it_is_divided(counts, more, accumulate, world, step):
    """Nor on which steps were asked for before; each micro-batch has a sample, and a fair part of the tokens."""
    budget = accumulate * world * max(counts) + more
    keys = order_of(counts, 0, budget).step(step)
    of_ranks = []
    for rank in range(world):
        order = order_of(counts, 0, budget, accumulate * world)
        order.step(step + 5)
        of_ranks.append(list(MicroBatches(order, accumulate, step, step + 1, rank, world)))
    assert all(len(parts) == accumulate for parts in of_ranks)
    parts = [part for parts in of_ranks for part in parts]
    assert all(parts) and sorted(key for part in parts for key in part) == sorted(keys)
    tokens = [sum(counts[index] for _, index in part) for part in parts]
    assert max(tokens) - min(tokens) <= max(counts)


def same_rows(run, other):
    rows = [[{k: v for k, v in row.items() if k not in TIMED} for row in read_metrics(r)] for r in (run, other)]
    assert rows[0] == rows[1]


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_a_killed_run_ends_the_same(tmp_path):
    """SIGKILL in the second micro-batch of a step, twice, each time after some steps that no checkpoint holds."""
    changes = {"accumulate": 2, "ema": 0.9, "steps": 14}
    whole = read(tmp_path / "whole", Reader(dropout=0.2), **changes)
    for call in (10, 12):
        process = SERVER.Process(target=read_until_killed, args=(str(tmp_path / "parts"), call, changes))
        process.start()
        process.join()
        assert process.exitcode == -9
    resumed = read(tmp_path / "parts", Reader(dropout=0.2, seed=9), resume=True, **changes)
    assert resumed.finished and torch.equal(weights(resumed.model), weights(whole.model))
    assert resumed.metrics == whole.metrics
    same_rows(tmp_path / "parts", tmp_path / "whole")


@pytest.mark.parametrize("accumulate", [2, 3, 6])
def test_accumulation_equals_the_big_batch(tmp_path, accumulate):
    whole = read(tmp_path / "whole", data=Sequences(ignore=True))
    parts = read(tmp_path / "parts", data=Sequences(ignore=True), accumulate=accumulate)
    torch.testing.assert_close(weights(parts.model), weights(whole.model), rtol=1e-5, atol=1e-6)


def test_rates_and_epochs_of_steps_of_any_size(tmp_path):
    data = Sequences()
    read(tmp_path, data=data)
    order = order_of(data.token_counts, 0, 60)
    rows = read_metrics(tmp_path)
    assert [row["samples"] for row in rows] == [order.start(step) for step in range(1, 13)]
    for step, row in enumerate(rows):
        keys = order.step(step)
        assert row["epoch"] == row["samples"] / 50
        tokens = sum(data.token_counts[index] for _, index in keys)
        assert row["tokens_per_second"] / row["samples_per_second"] == pytest.approx(tokens / len(keys))


def test_tokens_are_counted_where_steps_have_as_many_samples_too(tmp_path):
    data = Sequences()
    read(tmp_path, data=data, tokens_per_batch=None, batch_size=7)
    order = Order(0, 50, 7)
    for step, row in enumerate(read_metrics(tmp_path)):
        tokens = sum(data.token_counts[index] for _, index in order.step(step))
        assert row["tokens_per_second"] / row["samples_per_second"] == pytest.approx(tokens / 7)


@pytest.mark.parametrize("accumulate", [1, 3])
def test_a_spoilt_sample_is_named(tmp_path, accumulate):
    data = Sequences()
    data.sequences[17][0, 1] = torch.nan
    with pytest.raises(UserError, match=r"training sample 17 holds NaN or inf"):
        read(tmp_path, data=data, accumulate=accumulate)


def test_a_budget_that_is_too_small(tmp_path):
    data = Sequences()
    largest = max(range(50), key=data.token_counts.__getitem__)
    with pytest.raises(UserError) as error:
        read(tmp_path, data=data, tokens_per_batch=8)
    assert str(error.value) == (
        f"--train.tokens-per-batch 8 is too small: training sample {largest} has 9 tokens, so choose at least 9."
    )
    with pytest.raises(UserError) as error:
        read(tmp_path, data=data, tokens_per_batch=26, accumulate=3)
    assert str(error.value) == (
        f"--train.tokens-per-batch 26 is too small: training sample {largest} has 9 tokens, and each of the 3 "
        "micro-batches of a step needs a sample, so choose at least 27."
    )
    assert not list((tmp_path / "checkpoints").iterdir())


def test_data_without_token_counts(tmp_path):
    task = Task(build(), Classification(), Points(), Points(9), collate)
    with pytest.raises(UserError, match=r"needs the number of tokens.*\(token_counts\): use --train.batch-size\.$"):
        fit(task, TrainConfig(tokens_per_batch=100, device="cpu"), tmp_path)


@pytest.mark.parametrize("counts", [[1] * 49, [0] + [1] * 49, [0.5] * 50])
def test_token_counts_that_cannot_be(tmp_path, counts):
    data = Sequences()
    data.token_counts = counts
    with pytest.raises(UserError, match="token_counts of Sequences must be a whole number of at least 1 for each of"):
        read(tmp_path, data=data)


def test_a_batch_that_no_memory_holds(tmp_path, monkeypatch):
    monkeypatch.setattr("core.memory.total_memory", lambda: 2**20)
    with pytest.raises(UserError, match=r"A batch of 1,000,000 tokens needs .*choose a smaller --train\.tokens-per-b"):
        read(tmp_path, tokens_per_batch=2_000_000, accumulate=2)
