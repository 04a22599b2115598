"""Samples that grow: each size has its share of the steps, resuming is exact, and figures know the sizes."""

from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from points import Points, collate
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from core import Classification, Encoder, EncoderConfig, Tokens, UserError, attention_backend
from core.training import Task, TrainConfig, fit
from core.training.growth import Growth
from core.training.sampling import Order
from core.training.throughput import Throughput
from core.training.tracking import read_metrics

STEPS, BATCH = 10, 12
SEEN = [2, 2, 2, 2, 2, 3, 3, 3, 3, 3]  # coordinates in each step


class AnyCoordinates(nn.Module):
    """Each coordinate is a token. It notes how many it was trained on, and can fail at a step."""

    def __init__(self, failing=None):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.head = nn.Linear(1, 8), nn.Linear(8, 3)
        self.encoder = Encoder(EncoderConfig(dim=8, depth=1, heads=2, dropout=0.1))
        self.seen, self.failing = [], failing

    def forward(self, points):
        if self.training:
            if len(self.seen) == self.failing:
                raise UserError("failed")
            self.seen.append(points.shape[1])
        return self.head(self.encoder(Tokens(self.embed(points[..., None]))).x.mean(dim=1))


def shortened(batch, size):
    return batch._replace(inputs=(batch.inputs[0][:, :size],))


def train(folder, model, resume=False, **changes):
    growth = Growth((2, 3), shortened)
    task = Task(model, Classification(), Points(30), Points(8), collate, growth=growth, in_memory=True)
    settings = {"steps": STEPS, "batch_size": BATCH, "log_every": 1, "save_every": 5, "precision": "fp32", **changes}
    return fit(task, TrainConfig(device="cpu", **settings), folder, resume=resume)


@given(st.integers(1, 300), st.integers(1, 9))
def test_sizes_have_equal_numbers_of_steps_in_their_order(steps, sizes):
    growth = Growth(range(sizes))
    numbers = [growth.size(step, steps) for step in range(steps)]
    assert numbers == sorted(numbers)
    counts = [Counter(numbers)[number] for number in range(sizes)]
    assert max(counts) - min(counts) <= 1
    first = {number: numbers.index(number) for number in numbers}
    assert all(growth.starts(steps)[number] == step for number, step in first.items())


def test_each_step_has_its_size_and_evaluation_the_full_one(tmp_path):
    model, tested = AnyCoordinates(), []
    model.register_forward_hook(lambda model, inputs, _: None if model.training else tested.append(inputs[0].shape))
    found = train(tmp_path, model, accumulate=2)
    assert model.seen == [size for size in SEEN for _ in range(2)]
    assert tested[-1] == (8, 3)
    with FlopCounterMode(display=False) as counter, attention_backend("reference"):
        for size in SEEN:
            AnyCoordinates().eval()(torch.randn(BATCH, size))
    assert found.operations == pytest.approx(3 * counter.get_total_flops())
    rows = [row for row in read_metrics(tmp_path) if "mfu" in row]
    assert [row["tokens_per_second"] / row["samples_per_second"] for row in rows] == pytest.approx(SEEN)


def test_a_resumed_run_goes_on_with_the_sizes_of_its_steps(tmp_path):
    whole = train(tmp_path / "whole", AnyCoordinates())
    with pytest.raises(UserError, match="failed"):
        train(tmp_path / "parts", AnyCoordinates(failing=7))
    model = AnyCoordinates()
    resumed = train(tmp_path / "parts", model, resume=True)
    assert model.seen == SEEN[-len(model.seen) :] and 0 < len(model.seen) < STEPS
    assert resumed.operations == whole.operations
    pairs = zip(resumed.model.parameters(), whole.model.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("of_sizes, cost", [((5.0, 10.0, 20.0), 2 * 5 + 3 * 10 + 1 * 20), ((0.0, 0.0, 0.0), 6)])
def test_steps_of_larger_samples_cost_more(of_sizes, cost):
    """By this a run says how long it will take. Where a model has no operations that are counted, steps are equal."""
    throughput = Throughput(Order(0, 100, 10), processes=1, starts=(0, 4, 7))
    throughput.operations = [*of_sizes]
    assert throughput.cost(2, 8) == cost
    assert throughput.cost(8, 10**9) == (10**9 - 8) * (of_sizes[-1] or 1)
