"""A representation that collapses is named while it does: what healthy training does to features raises no alarm."""

from functools import partial

import pytest
import torch
from torch import nn

from core import EncoderConfig
from core.objectives import LatentConfig, LatentPrediction, MaskedLatents
from core.objectives.patch_masking import WithMaskNoise, collate_with_mask_noise
from core.training import Task, TrainConfig, fit
from core.training.monitor import Monitor
from core.training.tracking import read_metrics
from vision import ViT, ViTConfig
from vision.datasets import Digits
from vision.images import collate

PROVOKED = {"ema": 1e-6, "ema_end": 1e-6, "target_norm": "none"}  # the teacher is the student, and may say anything
COLLAPSE = "the representation collapses"


def train(run, seed, steps, lr=3e-3, **latent):
    """Masked latent prediction of digits, from random weights."""
    torch.manual_seed(seed)
    encoder = EncoderConfig(dim=32, depth=4, heads=2, mlp_dim=64)
    config = ViTConfig(image_size=8, patch_size=2, channels=1, classes=0, encoder=encoder)
    latents = LatentConfig(block=(1, 1), ratio=0.6, masks=1, **latent)
    model = LatentPrediction(ViT(config), latents, steps)
    model.follow()
    data = Digits().read(config.image_format)
    splits = {
        name: WithMaskNoise(part, (4, 4), (1, 1), fixed=name != "train", masks=1) for name, part in data.parts().items()
    }
    to_batch = partial(collate_with_mask_noise, collate)
    task = Task(model, MaskedLatents(), **splits, collate=to_batch, after_step=LatentPrediction.update)
    plain = {"batch_size": 16, "warmup": 20, "precision": "fp32", "device": "cpu", "workers": 0}
    run.mkdir()
    fit(task, TrainConfig(steps=steps, lr=lr, eval_every=steps, seed=seed, **plain), run)
    return [(row["step"], text) for row in read_metrics(run) for text in row.get("alarms", [])]


@pytest.mark.usefixtures("as_in_production")
@pytest.mark.parametrize("seed", [0, 1])
def test_a_teacher_that_is_the_student_lets_the_representation_collapse(tmp_path, seed):
    found = train(tmp_path / "run", seed, 100, **PROVOKED)
    assert [text.startswith(COLLAPSE) for _, text in found].count(True) == 1


@pytest.mark.usefixtures("as_in_production")
def test_healthy_training_raises_no_alarm(tmp_path):
    assert train(tmp_path / "run", 1, 200) == []


def alarms(monitor, *figures):
    rows = [{"features/spread": spread, "features/cosine": cosine} for spread, cosine in figures]
    return [len(monitor.alarms(row)) for row in rows]


def test_what_is_a_collapse():
    """A spread far below the widest so far, and samples in nearly one direction; not the one or the other alone."""
    monitor = Monitor(nn.Linear(1, 1))
    assert alarms(monitor, (0.02, 0.999), (0.1, 0.99), (0.5, 0.6), (0.1, 0.97), (0.3, 0.99), (0.13, 0.99)) == [0] * 6
    text = monitor.alarms({"features/spread": 0.05, "features/cosine": 0.9975})[0]
    assert text.startswith(COLLAPSE) and "spread 0.05 after 0.5, mean cosine 0.998" in text
    assert alarms(monitor, (0.01, 1.0), (0.5, 0.5), (0.01, 1.0)) == [0, 0, 0]
    assert monitor.alarms({"loss": 1.0}) == []


def test_a_resumed_run_knows_how_wide_the_features_were():
    monitor, again = Monitor(nn.Linear(1, 1)), Monitor(nn.Linear(1, 1))
    alarms(monitor, (0.5, 0.6), (0.3, 0.9))
    again.load(monitor.state())
    assert alarms(again, (0.05, 0.999)) == [1] and alarms(Monitor(nn.Linear(1, 1)), (0.05, 0.999)) == [0]
