"""Token distillation equals its definition, sample by sample, and teaches what the teacher computes."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from audio import AST, ASTConfig
from core import EncoderConfig, UserError
from core.attention.packing import Packing, Place
from core.encoder.pack import unpack
from core.objectives import Batch, TokenDistillation, TokenProjection
from text import TextConfig, TextEncoder
from vision import ViT, ViTConfig

OURS = EncoderConfig(dim=16, depth=1, heads=2)
THEIRS = EncoderConfig(dim=24, depth=2, heads=3, dropout=0.3)


def images(encoder, **changes):
    options = {"image_size": 12, "patch_size": 3, "channels": 2, "classes": 0, "encoder": encoder}
    return ViT(ViTConfig(**options | changes))


def sounds(encoder):
    return AST(
        ASTConfig(sample_rate=8_000, n_mels=16, max_frames=64, patch_size=8, stride=8, classes=0, encoder=encoder)
    )


def texts(encoder):
    return TextEncoder(TextConfig(vocab_size=50, max_length=24, head="none", encoder=encoder))


CASES = {
    "images of one size": (images, (torch.randn(4, 2, 12, 12),)),
    "images": (images, ([torch.randn(2, *size) for size in [(12, 12), (6, 18), (3, 6), (9, 3)]],)),
    "sounds": (sounds, ([torch.randn(length) for length in (4_000, 1_100, 2_300)],)),
    "texts": (texts, (torch.randint(50, (1, 36)), Packing.of([Place(9), Place(23), Place(4)]))),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("has_class", [True, False])
def test_errors_are_those_of_each_sample(name, has_class):
    torch.manual_seed(0)
    build, inputs = CASES[name]
    model, teacher = build(OURS), build(THEIRS)
    if build is images and not has_class:
        model, teacher = (images(encoder, class_token=False, registers=2, pool="mean") for encoder in (OURS, THEIRS))
    student = TokenProjection(model, 24)
    objective = TokenDistillation(teacher=teacher)
    encoded = [unpack(each.encoder(each.tokens(*inputs))) for each in (model, teacher)]
    batch = Batch(inputs, torch.zeros(len(encoded[0])))
    found = objective.errors(student, batch)
    assert found.tokens.shape == found.summary.shape == (len(encoded[0]),)
    for number, (ours, theirs) in enumerate(zip(*encoded, strict=True)):
        expected = F.layer_norm(theirs.body[0], (24,))
        torch.testing.assert_close(found.tokens[number], F.mse_loss(student.head(ours.body[0]), expected))
        wholes = [
            (each.x[0, 0] if each.prefix and model.config.class_token else each.body[0].mean(dim=0))
            for each in (ours, theirs)
        ]
        expected = F.layer_norm(wholes[1], (24,))
        torch.testing.assert_close(found.summary[number], F.mse_loss(student.summary_head(wholes[0]), expected))
    torch.testing.assert_close(objective.loss(student, batch), (found.tokens + found.summary).sum())


def test_the_teacher_is_no_part_of_the_model_and_stays_as_it_is():
    teacher = images(THEIRS).train()
    student, objective = TokenProjection(images(OURS), 24), TokenDistillation(teacher=teacher)
    before = [parameter.clone() for parameter in teacher.parameters()]
    batch = Batch((torch.randn(4, 2, 12, 12),), torch.zeros(4))
    state = torch.random.get_rng_state()
    objective.loss(student, batch).backward()
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not teacher.training and not any(parameter.requires_grad for parameter in teacher.parameters())
    assert all(torch.equal(a, b) for a, b in zip(teacher.parameters(), before, strict=True))
    assert sum(p.numel() for p in student.parameters()) == sum(p.numel() for p in student.model.parameters()) + 34 * 24


def test_a_student_learns_what_its_teacher_computes():
    """On new images it comes nearer than any constant does, whose error is 1 for normalised tokens less their mean."""
    torch.manual_seed(0)
    teacher = images(replace(THEIRS, dropout=0.0))
    student, objective = TokenProjection(images(OURS), 24), TokenDistillation(teacher=teacher)
    optimizer = torch.optim.Adam(student.parameters(), lr=3e-3)

    def new():
        return Batch((torch.randn(32, 2, 12, 12),), torch.zeros(32))

    tokens = torch.cat([objective.teach(new(), torch.device("cpu")).tokens for _ in range(8)])
    constant = tokens.var(dim=0, correction=0).mean()
    for _ in range(200):
        optimizer.zero_grad()
        objective.loss(student, new()).backward()
        optimizer.step()
    assert objective.errors(student, new()).tokens.mean() < 0.6 * constant


def test_other_numbers_of_tokens_are_refused():
    student = TokenProjection(images(OURS), 24)
    objective = TokenDistillation(teacher=images(THEIRS, patch_size=4))
    with pytest.raises(UserError, match="The teacher makes 9 tokens of a sample, and the model 16: give the model"):
        objective.loss(student, Batch((torch.randn(4, 2, 12, 12),), torch.zeros(4)))
