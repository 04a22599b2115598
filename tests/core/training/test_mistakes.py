"""What cannot be trained as asked is refused by one sentence, before the first step."""

import pytest
from points import Points, build, collate

from core import Classification, UserError
from core.training import Task, TrainConfig, fit


def train(folder, objective=None, model=None, collate=collate, **changes):
    model = model or build()
    task = Task(model, objective or Classification(), Points(), Points(17), collate, in_memory=True)
    return fit(task, TrainConfig(steps=2, batch_size=12, warmup=1, device="cpu", **changes), folder, quiet=True)


@pytest.mark.parametrize("asked", [{"label_smoothing": 0.3}, {"class_loss": "bce"}, {"class_balance": "weights"}])
def test_a_loss_that_the_objective_does_not_have(tmp_path, asked):
    with pytest.raises(UserError, match=f"TrainConfig.{next(iter(asked))} is carried out by the objective"):
        train(tmp_path, **asked)


def test_a_loss_that_it_has(tmp_path):
    train(tmp_path, Classification(label_smoothing=0.3, binary=True), label_smoothing=0.3, class_loss="bce")


def test_nothing_to_train(tmp_path):
    with pytest.raises(UserError, match="no parameter to train"):
        train(tmp_path, model=build().requires_grad_(False))


def test_a_batch_that_is_none(tmp_path):
    with pytest.raises(UserError, match=r"collate must return a core\.Batch, not a tuple"):
        train(tmp_path, collate=lambda samples: tuple(collate(samples)))


def test_the_directory_may_be_a_text(tmp_path):
    assert train(str(tmp_path / "run")).finished
