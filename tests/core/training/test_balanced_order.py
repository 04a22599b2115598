"""Balanced sampling: classes are drawn equally, samples of a class in turn, and steps depend on seed and step alone."""

import os
import signal
from collections import Counter

import numpy as np
import pytest
import torch
from points import Points, build, collate

from core import Classification, UserError
from core.training import Task, TrainConfig, fit
from core.training.balanced_order import BalancedOrder, class_numbers

CLASSES = np.array([0] * 50 + [1] * 7 + [2] * 3)


@pytest.mark.parametrize("batch_size", [3, 8, 60])
def test_classes_are_drawn_equally_and_samples_in_turn(batch_size):
    order = BalancedOrder(0, CLASSES, batch_size)
    keys = [key for step in range(240 // batch_size) for key in order.step(step)]
    drawn = Counter(CLASSES[index] for _, index in keys)
    assert max(drawn.values()) - min(drawn.values()) <= 1 and len(keys) == len(set(keys))
    for number in range(3):
        own = [key for key in keys if CLASSES[key[1]] == number]
        size = int((number == CLASSES).sum())
        for first in range(0, len(own) - size + 1, size):  # each sample once before any comes again
            assert {key for key in own[first : first + size]} == {
                (first // size, index) for index in np.flatnonzero(number == CLASSES).tolist()
            }
    for step in range(240 // batch_size):  # in each step as equal as can be
        found = Counter(CLASSES[index] for _, index in order.step(step)).values()
        assert max(found) - min(found) <= 2 and sum(found) == batch_size


def test_a_step_is_a_function_of_seed_and_step():
    one, other = BalancedOrder(3, CLASSES, 12), BalancedOrder(3, CLASSES, 12)
    steps = [one.step(step) for step in range(40)]
    assert [other.step(step) for step in reversed(range(40))] == steps[::-1]
    assert BalancedOrder(4, CLASSES, 12).step(7) != steps[7]
    assert [key for part in one.parts(5, 4) for key in part] == steps[5]
    assert len({index for keys in steps for _, index in keys}) == 60


def uneven():
    data = Points(40)
    data.targets = torch.tensor([0] * 30 + [1] * 7 + [2] * 3)
    data.class_numbers = data.targets.tolist()
    return data


def test_a_run_draws_classes_equally_and_resumes_bit_for_bit(tmp_path):
    seen = []

    class Noted(Points):
        def __getitem__(self, index):
            seen.append(int(self.targets[index]))
            return super().__getitem__(index)

    def train(run, data, resume=False, stop_at=0):
        run.mkdir(exist_ok=True)
        changes = {"class_balance": "sampling", "precision": "fp32", "device": "cpu", "lr": 0.01, "log_every": 1}
        config = TrainConfig(steps=10, batch_size=12, accumulate=2, **changes)
        model, calls = build(dropout=0.2, seed=9 if resume else 0), []

        def stop(module, inputs, output):
            calls.append(module.training)
            if stop_at and sum(calls) == 2 * stop_at:
                os.kill(os.getpid(), signal.SIGTERM)

        model.register_forward_hook(stop)
        return fit(Task(model, Classification(), data, Points(9), collate, in_memory=True), config, run, resume=resume)

    data = uneven()
    data.__class__ = Noted
    whole = train(tmp_path / "whole", data)
    assert set(Counter(seen[1:]).values()) == {40}  # the first was read to see how large it is
    assert not train(tmp_path / "parts", uneven(), stop_at=4).finished
    resumed = train(tmp_path / "parts", uneven(), resume=True)
    assert resumed.metrics == whole.metrics
    for one, other in zip(resumed.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("stated", [None, [0] * 40, [(0, 1)] * 40, [0.5] * 40])
def test_data_without_classes_are_refused(stated):
    data = uneven()
    data.class_numbers = stated
    with pytest.raises(UserError, match=r"--train\.class-balance needs training samples of one class each"):
        class_numbers(data)


@pytest.mark.parametrize("other", [{"tokens_per_batch": 50}, {"bucket_lengths": True}])
def test_what_orders_samples_otherwise_is_refused(other):
    with pytest.raises(UserError, match="sampling does not go with --train"):
        TrainConfig(class_balance="sampling", **other)
