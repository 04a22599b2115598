"""Distillation: Hinton's loss, a teacher that stays as it is, and runs that are as exact as others."""

import os
import signal

import pytest
import torch
from points import Points, build, collate
from samplefiles import refused
from torch import nn

from core import IGNORE, Batch, Classification, Encoder, EncoderConfig, Tokens
from core.attention.recording import record_attention
from core.objectives import Distillation
from core.objectives.distillation import with_classes
from core.training import Task, TrainConfig, fit


@pytest.mark.parametrize("temperature, share", [(1.0, 1.0), (4.0, 0.3)])
@pytest.mark.parametrize("mixed", [False, True])
def test_the_loss_is_hintons(temperature, share, mixed):
    torch.manual_seed(0)
    points, student, teacher = torch.randn(9, 3), build(seed=1), build(seed=2)
    targets = torch.rand(9, 3).softmax(dim=1) if mixed else torch.randint(3, (9,))
    objective = Distillation(label_smoothing=0.1, teacher=teacher, share=share, temperature=temperature)
    batch = Batch((points,), targets)
    hard = nn.CrossEntropyLoss(label_smoothing=0.1)(student(points), targets)
    soft = nn.KLDivLoss(reduction="batchmean")(
        (student(points) / temperature).log_softmax(1), (teacher(points) / temperature).softmax(1)
    )
    expected = (1 - share) * hard + share * temperature**2 * soft
    torch.testing.assert_close(objective.loss(student, batch) / objective.count(batch), expected)


def test_ignored_targets_count_for_nothing():
    points, targets = torch.randn(8, 3), torch.arange(8) % 3
    objective = Distillation(teacher=build(seed=2))
    whole = objective.loss(build(), Batch((points,), targets))
    more = Batch((torch.cat([points, points])), torch.cat([targets, torch.full((8,), IGNORE)]))
    more = Batch((torch.cat([points, points]),), more.targets)
    torch.testing.assert_close(objective.loss(build(), more), whole)


def test_a_teacher_is_not_trained_and_draws_no_random_numbers():
    teacher = build(dropout=0.5, seed=2)
    before = [parameter.clone() for parameter in teacher.parameters()]
    objective, batch = Distillation(teacher=teacher), Batch((torch.randn(8, 3),), torch.arange(8) % 3)
    state = torch.get_rng_state()
    objective.loss(build(), batch).backward()
    torch.manual_seed(0)
    build()  # draws what the model drew above
    assert not teacher.training and all(parameter.grad is None for parameter in teacher.parameters())
    assert all(torch.equal(one, other) for one, other in zip(teacher.parameters(), before, strict=True))
    torch.set_rng_state(state)
    objective.teach(batch, torch.device("cpu"))
    assert torch.equal(torch.get_rng_state(), state)


class Mixer(nn.Module):
    def __init__(self, depth):
        super().__init__()
        self.encoder, self.head = Encoder(EncoderConfig(dim=8, depth=depth, heads=2)), nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.encoder(Tokens(x)).x.mean(dim=1))


def test_what_the_teacher_attends_to_is_not_recorded_as_the_models():
    objective, batch = Distillation(teacher=Mixer(5)), Batch((torch.randn(4, 6, 8),), torch.arange(4) % 3)
    with record_attention() as calls:
        objective.loss(Mixer(2), batch)
    assert len(calls) == 2


def train(run, objective, data, resume=False, stop_at=0, steps=60):
    run.mkdir(exist_ok=True)
    model, calls = build(dropout=0.1, seed=9 if resume else 0), []

    def stop(module, inputs, output):
        calls.append(module.training)
        if stop_at and sum(calls) == stop_at:
            os.kill(os.getpid(), signal.SIGTERM)

    model.register_forward_hook(stop)
    config = TrainConfig(steps=steps, batch_size=12, warmup=1, lr=0.02, precision="fp32", device="cpu", ema=0.5)
    return fit(Task(model, objective, data, Points(30), collate, in_memory=True), config, run, resume=resume)


def test_a_model_learns_from_a_teacher_what_its_labels_do_not_say(tmp_path):
    """The labels are random; the teacher has learnt from true ones."""
    teacher = train(tmp_path / "teacher", Classification(), Points(60)).model
    data = Points(60)
    data.targets = torch.randint(3, (60,), generator=torch.Generator().manual_seed(0))
    alone = train(tmp_path / "alone", Classification(), data)
    taught = train(tmp_path / "taught", Distillation(teacher=teacher, share=1.0), data)
    assert taught.metrics["accuracy"] > 0.85 > 0.7 > alone.metrics["accuracy"]
    assert "interval" not in taught.metrics and Distillation(teacher=teacher).primary == "accuracy"


def test_a_distilled_run_resumes_bit_for_bit(tmp_path):
    objective = Distillation(teacher=build(seed=4), weights=(0.5, 1.0, 2.0))
    whole = train(tmp_path / "whole", objective, Points(60), steps=12)
    assert not train(tmp_path / "parts", objective, Points(60), steps=12, stop_at=5).finished
    again = Distillation(teacher=build(seed=4), weights=(0.5, 1.0, 2.0))
    resumed = train(tmp_path / "parts", again, Points(60), steps=12, resume=True)
    assert resumed.metrics == whole.metrics
    for one, other in zip(resumed.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_the_teachers_classes_are_put_in_our_order_or_refused():
    teacher, points = build(), torch.randn(5, 3)
    assert with_classes(teacher, "t", ("a", "b", "c"), ("a", "b", "c")) is teacher
    reordered = with_classes(teacher, "t", ("c", "a", "b"), ("a", "b", "c"))
    torch.testing.assert_close(reordered(points), teacher(points)[:, [1, 2, 0]])
    refused(lambda: with_classes(teacher, "t", (), ("a",)), "--distill.teacher t does not name its classes")
    refused(lambda: with_classes(teacher, "t", ("a", "b"), ("a", "x")), "'x' is one that the data have, and not the")
    refused(lambda: with_classes(teacher, "t", ("a", "b"), ("a",)), "'b' is one that the teacher has, and not the data")
