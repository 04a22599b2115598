"""However a batch is cut into micro-batches, its gradient is the same: for every objective, to the last digits."""

import pytest
import torch
from points import accelerator
from torch import nn

from core import (
    IGNORE,
    Batch,
    Classification,
    Contrastive,
    Encoder,
    EncoderConfig,
    MaskedTokens,
    MultiLabel,
    Regression,
    SigmoidContrastive,
    Similarity,
    Tokens,
)
from core.training.gradients import step_gradients

SIZE, WIDTH, LENGTH, CLASSES = 12, 8, 5, 3
CUTS = {"even": [4, 4, 4], "one by one": [1] * SIZE, "a small last one": [5, 5, 2], "all sizes": [1, 6, 2, 3]}
BOUNDS = {torch.float32: 1e-6, torch.float64: 1e-13}


class Trunk(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.encoder = Encoder(EncoderConfig(dim=WIDTH, depth=1, heads=2))
        self.head = nn.Linear(WIDTH, CLASSES)

    def vectors(self, x):
        return self.encoder(Tokens(x)).x

    def forward(self, x):
        return self.head(self.vectors(x).mean(dim=1))


class Words(Trunk):
    def forward(self, x, where):
        return self.head(self.vectors(x)[where])


class Views(Trunk):
    def __init__(self, bias):
        super().__init__()
        self.similarity = Similarity(scale=2.0, bias=bias)

    def forward(self, a, b, c):
        return [self.similarity(self.vectors(x).mean(dim=1)) for x in (a, b, c)]


def draw(kind, dtype):
    """A model, an objective and a batch; about every third target counts for nothing."""
    random = torch.Generator().manual_seed(1)
    x = [torch.randn(SIZE, LENGTH, WIDTH, generator=random, dtype=dtype) for _ in range(3)]
    classes = torch.randint(CLASSES, (SIZE,), generator=random)
    ignored = torch.rand(SIZE, generator=random) < 0.3
    ignored[:4] = True  # the first micro-batch has nothing to learn from
    match kind:
        case "classification":
            return Trunk(), Classification(label_smoothing=0.1), Batch((x[0],), classes.masked_fill(ignored, IGNORE))
        case "mixed classification":
            probabilities = torch.rand(SIZE, CLASSES, generator=random, dtype=dtype)
            return Trunk(), Classification(), Batch((x[0],), probabilities / probabilities.sum(dim=1, keepdim=True))
        case "multi-label":
            several = torch.randint(2, (SIZE, CLASSES), generator=random)
            several[torch.rand(SIZE, CLASSES, generator=random) < 0.3] = IGNORE
            return Trunk(), MultiLabel(), Batch((x[0],), several.masked_fill(ignored[:, None], IGNORE))
        case "regression":
            numbers = torch.randn(SIZE, generator=random, dtype=dtype)
            return Trunk(), Regression(std=2.0), Batch((x[0],), numbers.masked_fill(ignored, torch.nan))
        case "masked tokens":
            words = torch.randint(CLASSES, (SIZE, LENGTH), generator=random)
            words[torch.rand(SIZE, LENGTH, generator=random) < 0.5] = IGNORE
            return Words(), MaskedTokens(), Batch((x[0],), words.masked_fill(ignored[:, None], IGNORE))
        case "contrastive" | "sigmoid contrastive":
            things = torch.randint(6, (SIZE,), generator=random)  # some are shown more than once
            bias, objective = (None, Contrastive()) if kind == "contrastive" else (-3.0, SigmoidContrastive())
            return Views(bias), objective, Batch(tuple(x), things.masked_fill(ignored, IGNORE))


KINDS = (
    "classification",
    "mixed classification",
    "multi-label",
    "regression",
    "masked tokens",
    "contrastive",
    "sigmoid contrastive",
)


def gradients(model, objective, batches):
    model.zero_grad()
    loss, norm = step_gradients(accelerator(), model, objective, batches)
    return loss, norm, torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def cut(batch, sizes):
    inputs = zip(*(x.split(sizes) for x in batch.inputs), strict=True)
    return [Batch(x, y) for x, y in zip(inputs, batch.targets.split(sizes), strict=True)]


@pytest.mark.parametrize("dtype", BOUNDS, ids=str)
@pytest.mark.parametrize("sizes", CUTS.values(), ids=CUTS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_is_that_of_the_whole_batch(kind, sizes, dtype):
    model, objective, batch = draw(kind, dtype)
    model.to(dtype)
    loss, norm, whole = gradients(model, objective, [batch])
    assert norm > 1e-3
    cut_loss, _, parts = gradients(model, objective, cut(batch, sizes))
    bound = BOUNDS[dtype]
    assert cut_loss == pytest.approx(loss, abs=bound)
    torch.testing.assert_close(parts, whole, rtol=0, atol=bound)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "mixed classification"])
def test_nothing_to_learn_from_is_no_gradient(kind):
    model, objective, batch = draw(kind, torch.float32)
    nothing = torch.nan if batch.targets.is_floating_point() else IGNORE
    batch = Batch(batch.inputs, torch.full_like(batch.targets, nothing))
    for batches in ([batch], cut(batch, [4, 8])):
        loss, norm, found = gradients(model, objective, batches)
        assert loss == norm == 0 and not found.any()


def test_the_contrastive_loss_is_clip_s():
    """With every thing shown once, by two views: the symmetric cross-entropy of Radford et al. 2021, figure 3."""
    a, b = torch.randn(2, SIZE, WIDTH)
    logits, labels = a @ b.T, torch.arange(SIZE)
    expected = (nn.functional.cross_entropy(logits, labels) + nn.functional.cross_entropy(logits.T, labels)) / 2
    torch.testing.assert_close(Contrastive().joint_loss([a, b], labels) / SIZE, expected)


def test_the_sigmoid_loss_is_siglip_s():
    """As algorithm 1 of Zhai et al. 2023 has it."""
    similarity = Similarity(scale=10.0, bias=-10.0)
    a, b = torch.randn(2, SIZE, WIDTH)
    unit_a, unit_b = nn.functional.normalize(a), nn.functional.normalize(b)
    logits, labels = unit_a @ unit_b.T * 10 - 10, 2 * torch.eye(SIZE) - 1
    expected = -nn.functional.logsigmoid(labels * logits).sum() / SIZE
    found = SigmoidContrastive().joint_loss([similarity(a), similarity(b)], torch.arange(SIZE)) / SIZE
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(Similarity(scale=1e6)(a).norm(dim=1), torch.full((SIZE,), 10.0))  # the largest's root


def test_contrastive_metrics():
    """Of four things the second view shows two at each other's place; a fifth takes no part."""
    views = torch.stack([torch.eye(5), torch.eye(5)[[0, 1, 3, 2, 4]]], dim=1)
    found = Contrastive().metrics({"vectors": 9 * views, "targets": torch.tensor([7, 8, 9, 10, IGNORE])})
    assert found["recall"] == 0.5
    assert found["loss"] == pytest.approx(81 / 2, abs=1e-3)
