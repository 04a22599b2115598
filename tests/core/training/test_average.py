"""The average of the weights: its decay, and that a short run's average does not keep the weights it began with."""

import copy

import pytest
import torch
from points import Points, build, collate

from core import Classification
from core.training import Task, TrainConfig, fit
from core.training.optim import ema_decay


def test_the_decay_rises_to_the_one_that_is_asked_for():
    found = [ema_decay(0.99, updates) for updates in (1, 8, 889, 890, 891, 10**6)]
    assert found == [2 / 11, 0.5, 890 / 899, 891 / 900, 0.99, 0.99]
    assert ema_decay(0.1, 1) == 0.1


@pytest.mark.parametrize("decay", [0.3, 0.9995])
def test_it_is_the_average_of_the_weights_after_each_step(tmp_path, decay):
    followed = []

    def follow(model, step):
        followed.append(copy.deepcopy(model.state_dict()))

    plain = TrainConfig(steps=30, batch_size=12, warmup=1, lr=0.02, precision="fp32", device="cpu", ema=decay)
    task = Task(build(), Classification(), Points(60), Points(30), collate, in_memory=True, after_step=follow)
    found = fit(task, plain, tmp_path).model.state_dict()
    expected = followed[0]
    for updates, weights in enumerate(followed[1:], 1):
        share = min(decay, (1 + updates) / (10 + updates))
        expected = {name: share * value + (1 - share) * weights[name] for name, value in expected.items()}
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-6)
    kept = torch.tensor([ema_decay(decay, updates) for updates in range(1, 30)], dtype=torch.float64).prod()
    assert kept < 1e-5 < 0.98 < 0.9995**29  # of the first weights in the average: without the rise, nearly all
