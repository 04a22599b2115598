"""The losses of classes: those of torch and timm, with weights, smoothing, mixed targets and targets to ignore."""

import numpy as np
import pytest
import torch
from points import accelerator
from sklearn.utils.class_weight import compute_class_weight
from timm.loss import BinaryCrossEntropy
from torch import nn

from core import IGNORE, Batch, Classification, UserError
from core.objectives.classification import balanced_weights
from core.training.gradients import step_gradients

WEIGHTS = (0.3, 2.0, 1.0, 0.05)


def drawn(mixed=False, size=12):
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(size, 4, generator=generator)
    targets = torch.randint(4, (size,), generator=generator)
    return logits, torch.rand(size, 4, generator=generator).softmax(dim=1) if mixed else targets


def mean_loss(objective, logits, targets):
    batch = Batch((logits,), targets)
    return objective.loss(nn.Identity(), batch) / objective.count(batch)


@pytest.mark.parametrize(
    ("targets", "said"),
    [
        (torch.tensor([0, 4]), "there is no class 4: the model has 4, counted from 0"),
        (torch.tensor([-1, 0]), "there is no class -1"),
        (torch.tensor([1, 0], dtype=torch.int32), "64-bit integers"),
        (torch.tensor([True, False]), "64-bit integers"),
        (torch.tensor([[1], [0]]), "64-bit integers"),
        (torch.tensor([1.0, 0.0]), "probabilities of classes are 2 x 4"),
    ],
)
def test_targets_that_cannot_be_are_named(targets, said):
    with pytest.raises(UserError, match=said):
        Classification().loss(nn.Identity(), Batch((torch.randn(2, 4),), targets))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_weighted_losses_are_those_of_torch(smoothing):
    logits, targets = drawn()
    targets[::4] = IGNORE
    theirs = nn.CrossEntropyLoss(torch.tensor(WEIGHTS), label_smoothing=smoothing)(logits, targets)
    ours = mean_loss(Classification(label_smoothing=smoothing, weights=WEIGHTS), logits, targets)
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("mixed", [False, True])
def test_binary_losses_are_those_of_timm(smoothing, mixed):
    logits, targets = drawn(mixed)
    # timm's Mixup has smoothed what its loss gets.
    given = targets * (1 - smoothing) + smoothing / 4 if mixed else targets
    theirs = BinaryCrossEntropy(smoothing=smoothing)(logits, given)
    ours = mean_loss(Classification(label_smoothing=smoothing, binary=True), logits, targets)
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_mixed_targets_of_one_class_are_that_class_and_ignored_ones_count_for_nothing(binary, weights):
    objective = Classification(label_smoothing=0.1, binary=binary, weights=weights)
    logits, targets = drawn()
    one_hot = torch.nn.functional.one_hot(targets, 4).float()
    torch.testing.assert_close(mean_loss(objective, logits, one_hot), mean_loss(objective, logits, targets))
    ignored = torch.cat([targets, torch.full((3,), IGNORE)])
    more = torch.cat([logits, logits[:3]])
    torch.testing.assert_close(mean_loss(objective, more, ignored), mean_loss(objective, logits, targets))


@pytest.mark.parametrize("binary", [False, True])
def test_a_weight_of_2_is_the_sample_twice_however_the_batch_is_cut(binary):
    logits, targets = drawn()
    x = torch.cat([logits, logits[targets == 1]])
    twice = Classification(binary=binary), [Batch((x,), torch.cat([targets, targets[targets == 1]]))]
    weighted = Classification(binary=binary, weights=(1.0, 2.0, 1.0, 1.0))
    whole = weighted, [Batch((logits,), targets)]
    parts = weighted, [Batch((a,), b) for a, b in zip(logits.split(3), targets.split(3), strict=True)]
    gradients = []
    for objective, batches in (twice, whole, parts):
        torch.manual_seed(0)
        model = nn.Linear(4, 4)
        loss, _ = step_gradients(accelerator(), model, objective, batches)
        gradients.append((loss, model.weight.grad))
    for loss, gradient in gradients[1:]:
        assert loss == pytest.approx(gradients[0][0], rel=1e-5)
        torch.testing.assert_close(gradient, gradients[0][1])


def test_the_scale_of_the_weights_does_not_matter_even_where_a_step_has_less_than_1_of_them():
    logits, targets = drawn()
    losses = []
    for scale in (1.0, 1e-3):
        torch.manual_seed(0)
        objective = Classification(weights=tuple(scale * weight for weight in WEIGHTS))
        losses.append(step_gradients(accelerator(), nn.Linear(4, 4), objective, [Batch((logits,), targets)])[0])
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


def test_balanced_weights_are_those_of_scikit_learn():
    numbers = [0] * 7 + [1] * 2 + [2]
    theirs = compute_class_weight("balanced", classes=np.arange(3), y=numbers)
    assert balanced_weights(numbers, 3) == pytest.approx(theirs.tolist())
    assert balanced_weights([0, 2, 2], 3)[1] == 0
