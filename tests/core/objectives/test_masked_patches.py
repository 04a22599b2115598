"""Masked autoencoding: the encoder never sees masked patches, and padding changes nothing."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from jaxtyping import TypeCheckError
from plain import plain

from audio import AST, ASTConfig
from audio.train import AUDIO
from core import EncoderConfig, Tokens, UserError
from core.experiments import train_command
from core.objectives import Batch, MaskedAutoencoder, MaskedConfig, MaskedPatches
from core.objectives.masked_autoencoder import unpatch
from core.objectives.patch_masking import block_noise, mask_patches
from vision import ViT, ViTConfig
from vision.train import VISION

ENCODER = EncoderConfig(dim=32, depth=2, heads=2, mlp_dim=48)
CONFIG = MaskedConfig(ratio=0.6, dim=16, heads=2)


def vision(**changes):
    torch.manual_seed(0)
    model = ViT(ViTConfig(image_size=12, patch_size=3, channels=2, classes=0, registers=1, encoder=ENCODER))
    return MaskedAutoencoder(model, MaskedConfig(**{"ratio": 0.6, "dim": 16, "heads": 2, **changes}), 18).eval()


def audio():
    torch.manual_seed(0)
    config = ASTConfig(sample_rate=8_000, n_mels=16, max_frames=64, patch_size=8, stride=8, classes=0, encoder=ENCODER)
    return MaskedAutoencoder(AST(config), CONFIG, 64).eval()


def test_the_ratio_is_masked_of_the_real_patches():
    noise = torch.rand(3, 20)
    real = torch.arange(20) < torch.tensor([[20], [7], [2]])
    masked = mask_patches(noise, real, 0.6)
    assert masked.sum(dim=1).tolist() == [12, 4, 1] and not (masked & ~real).any()
    assert mask_patches(noise, None, 0.01).sum(dim=1).tolist() == [1, 1, 1]
    assert mask_patches(noise, None, 0.999).sum(dim=1).tolist() == [19, 19, 19]
    assert (noise[0][masked[0]].max() < noise[0][~masked[0]].min()).item()


@pytest.mark.parametrize("block", [(1, 1), (2, 3), (6, 2), (1, 8)])
def test_blocks_are_masked_together(block):
    noise = block_noise(np.random.default_rng(0), (6, 8), block)
    assert noise.shape == (6, 8) and noise.min() >= 0 and noise.max() < 1
    values, counts = noise.unique(return_counts=True)
    assert counts.max() <= block[0] * block[1] and len(values) >= 48 // (block[0] * block[1])
    for value in values:
        rows, columns = (noise == value).nonzero(as_tuple=True)
        assert (noise[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1] == value).all()


@pytest.mark.parametrize("block", [(0, 0), (9, 0), (6, 8)])
def test_a_block_of_the_whole_sample_does_not_always_mask_the_same_patches(block):
    random = np.random.default_rng(0)
    masked = torch.stack([mask_patches(block_noise(random, (6, 8), block).view(1, -1), None, 0.5) for _ in range(300)])
    assert (masked.sum(dim=2) == 24).all()
    assert masked.float().mean(dim=0).min() > 0.3 and masked.float().mean(dim=0).max() < 0.7


def test_masked_patches_are_not_seen():
    model, noise = vision(), torch.rand(2, 4, 4)
    images = torch.randn(2, 2, 12, 12)
    prediction = model(images, noise)
    pixels = prediction.masked.reshape(2, 1, 4, 4).repeat_interleave(3, 2).repeat_interleave(3, 3)
    other = model(images.where(~pixels, torch.randn_like(images)), noise)
    torch.testing.assert_close(prediction.predicted, other.predicted, rtol=0, atol=1e-6)
    assert not torch.equal(prediction.target, other.target)
    seen = model(images.where(pixels, torch.randn_like(images)), noise)
    assert (prediction.predicted - seen.predicted).abs().max() > 1e-3


def test_the_encoder_is_given_the_visible_patches_only():
    model, lengths = vision(), []
    model.model.encoder.register_forward_pre_hook(lambda _, inputs: lengths.append(inputs[0].x.shape[1]))
    model(torch.randn(2, 2, 12, 12), torch.rand(2, 4, 4))
    assert lengths == [2 + 16 - 10]


def test_a_clip_alone_or_padded():
    model = audio()
    lengths = torch.tensor([4_000, 2_300, 900])
    sounds = torch.randn(3, 4_000) * (torch.arange(4_000) < lengths[:, None])
    noise = torch.rand(3, *model.model.embed.grid)
    together = model(sounds, lengths, noise)
    assert together.masked.sum(dim=1).unique().numel() > 1
    errors = MaskedPatches().errors(together)[0]
    for row, length in enumerate(lengths.tolist()):
        alone = model(sounds[row : row + 1, :length], lengths[row : row + 1], noise[row : row + 1])
        torch.testing.assert_close(MaskedPatches().errors(alone)[0][0], errors[row], rtol=1e-4, atol=1e-5)


def test_the_gradient_reaches_everything_and_the_loss_is_per_sample():
    model, objective = vision().train(), MaskedPatches()
    batch = Batch((torch.randn(6, 2, 12, 12), torch.rand(6, 4, 4)), torch.zeros(6))
    whole = objective.loss(model, batch)
    whole.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name
    parts = [Batch(tuple(x[i : i + 2] for x in batch.inputs), batch.targets[:2]) for i in (0, 2, 4)]
    torch.testing.assert_close(sum(objective.loss(model, part) for part in parts), whole)
    assert objective.count(batch) == 6
    results = objective.evaluate(model, batch)
    assert objective.metrics(results)["loss"] == pytest.approx(whole.item() / 6, rel=1e-5)


def test_predicted_patches_go_back_into_the_image():
    model, images, noise = vision(), torch.randn(2, 2, 12, 12), torch.rand(2, 4, 4)
    patches = model.model.patches(images)
    torch.testing.assert_close(unpatch(patches, (12, 12), (3, 3), (3, 3)), images)
    prediction = model(images, noise)
    right = prediction._replace(predicted=prediction.target)
    torch.testing.assert_close(model.reconstruct(right, patches), patches, rtol=0, atol=1e-4)
    visible = ~prediction.masked
    assert torch.equal(model.reconstruct(prediction, patches)[visible], patches[visible])


def test_what_cannot_be_masked_is_refused():
    with pytest.raises(UserError, match=r"ratio must be less than 1, not 1\.0"):
        MaskedConfig(ratio=1.0)
    with pytest.raises(TypeCheckError):
        Tokens(torch.randn(2, 3))


@pytest.mark.usefixtures("few_to_probe", "without_figures")
@pytest.mark.parametrize("modality, name, finer", [(VISION, "digits", 10), (AUDIO, "dtmf", 16)])
def test_pre_training_and_fine_tuning_by_the_command(modality, name, finer, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    short = ["--train.steps", "3", "--train.batch-size", "4", "--train.eval-every", "3", "--train.warmup", "1"]
    short += ["--data.repeats", "1"] if name == "dtmf" else []  # few clips to test on
    small = ["--model.dim", "16", "--model.heads", "2", "--model.depth", "2", "--model.mlp-dim", "24"]
    train_command(modality, [f"{name}-mae", *short, *small, "--masked.block", "0", "1"])
    assert "Masked patches" in Path(f"runs/{name}-mae/report.html").read_text()
    modality = plain(modality)
    train_command(modality, [f"{name}-mae", *short, "--out", f"runs/{name}-mae", "--resume", "--train.steps", "5"])
    assert json.loads(Path(f"runs/{name}-mae/summary.json").read_text())["steps"] == 5
    train_command(
        modality,
        [name, *short, "--init", f"runs/{name}-mae", "--data.per-class", "2", "--out", "tuned", "--probe-start"],
    )
    summary = json.loads(Path("tuned/summary.json").read_text())
    assert summary["train_samples"] == 2 * finer and "linear_probe" in summary
    with pytest.raises(SystemExit):
        train_command(modality, [name, *short, "--data.per-class", "0", "--out", "none"])
    assert "per-class must be at least 1" in capsys.readouterr().err
