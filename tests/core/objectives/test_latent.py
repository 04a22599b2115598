"""Masked latent prediction of samples of any sizes and kinds equals its definition, sample by sample, mask by mask."""

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from audio import AST, ASTConfig
from core import EncoderConfig, Tokens, UserError, adapters, sincos_positions
from core.attention.packing import Packing, Place
from core.attention.recording import record_attention
from core.encoder.pack import unpack
from core.models.tuning import tune
from core.objectives import Batch, LatentConfig, LatentPrediction, MaskedAutoencoder, MaskedConfig, MaskedLatents
from core.objectives.patch_masking import count_masked
from core.sparse import Local
from text import TextConfig, TextEncoder
from vision import ViT, ViTConfig

ENCODER = EncoderConfig(dim=32, depth=3, heads=2, mlp_dim=48)
CONFIG = LatentConfig(ratio=0.6, masks=3, layers=2)
DINO = replace(ENCODER, rotary="2d", rotary_unit=True, rotary_theta=100.0, layer_scale=0.5)
MODERNBERT = replace(
    ENCODER, rotary="1d", rotary_theta=(1e5, 1e4), activation="geglu", patterns=(None, Local(2, exact=True))
)


def images(encoder=ENCODER, **changes):
    options = {"image_size": 12, "patch_size": 3, "channels": 2, "classes": 0, "registers": 1, "encoder": encoder}
    batch = [torch.randn(2, *size, dtype=torch.float64) for size in [(12, 12), (6, 18), (3, 6), (9, 3)]]
    return ViT(ViTConfig(**options | changes)), (batch,), torch.rand(4, 3, 4, 6, dtype=torch.float64)


def one_size(encoder=ENCODER):
    model, _, noise = images(encoder)
    return model, (torch.randn(4, 2, 12, 12, dtype=torch.float64),), noise


def clips(encoder=ENCODER):
    config = ASTConfig(sample_rate=8_000, n_mels=16, max_frames=64, patch_size=8, stride=8, classes=0, encoder=encoder)
    lengths = torch.tensor([4_000, 1_100, 2_300])
    sounds = torch.randn(3, 4_000, dtype=torch.float64) * (torch.arange(4_000) < lengths[:, None])
    model = AST(config)
    return model, (sounds, lengths), torch.rand(3, 3, *model.embed.grid, dtype=torch.float64)


def texts(encoder=ENCODER, positions="learned"):
    config = TextConfig(vocab_size=50, max_length=24, positions=positions, head="none", encoder=encoder)
    packing = Packing.of([Place(9), Place(23), Place(4)])
    noise = torch.rand(3, 3, 23, 1, dtype=torch.float64)
    noise[:, :, 0] = torch.inf  # the first token is not masked
    return TextEncoder(config), (torch.randint(50, (1, 36)), packing), noise


KINDS = {
    "images": images,
    "images of one size": one_size,
    "without a class token": lambda: images(class_token=False, registers=0, pool="mean"),
    "like DINOv3": lambda: images(DINO, positions="none", registers=4),
    "clips": clips,
    "texts": texts,
    "like ModernBERT": lambda: texts(MODERNBERT, "none"),
}


def make(kind, **changes):
    torch.manual_seed(0)
    model, inputs, noise = KINDS[kind]()
    latent = LatentPrediction(model, replace(CONFIG, **changes), steps=10).double()
    latent.follow()
    for parameter in (*latent.parameters(), *latent.teacher.buffers()):  # the teacher is not the student
        torch.nn.init.normal_(parameter, std=0.3)
    return latent, inputs, noise


def normed(x):
    return F.layer_norm(x, x.shape[-1:])


def targets_by_definition(latent, teacher, sample):
    layers = teacher.encoder.intermediate(sample, list(latent.layers))
    norms = {
        "token": normed,
        "sample": lambda x: F.instance_norm(x.mT).mT,
        "none": lambda x: x,
    }
    how = latent.config.target_norm
    mean = torch.stack([norms[how](layer.body) for layer in layers]).mean(dim=0)
    summary = torch.stack([normed(layer.body) for layer in layers]).mean(dim=0).mean(dim=1)
    return mean[0] if how == "none" else normed(mean)[0], normed(summary)[0]


def by_definition(latent, inputs, noise):
    """The errors of each sample."""
    teacher = copy.deepcopy(latent.model)
    teacher.load_state_dict({name.replace("/", "."): t for name, t in latent.teacher.named_buffers()}, strict=False)
    model, decoder, config = latent.model, latent.decoder, latent.config
    wholes = [unpack(part.eval().tokens(*inputs)) for part in (model, teacher)]
    of_tokens, of_summary = [], []
    for sample, of_teacher, draws in zip(*wholes, noise, strict=True):
        with torch.no_grad():
            target, summary_target = targets_by_definition(latent, teacher, of_teacher)
        prefix, count = sample.prefix, sample.x.shape[1] - sample.prefix
        grid = sample.grid or (count, 1)
        errors, summaries = [], []
        for draw in draws:
            draw = draw[: grid[0], : grid[1]].flatten()
            masked = torch.zeros(count, dtype=torch.bool)
            masked[draw.argsort()[: int(count_masked(count, config.ratio))]] = True
            seen = torch.cat([torch.ones(prefix, dtype=torch.bool), ~masked])
            encoded = model.encoder(Tokens(sample.x, mask=seen[None], grid=sample.grid, prefix=prefix)).x[:, seen]
            row = decoder.mask_token.repeat(1, prefix + count, 1).index_copy(
                1, seen.nonzero()[:, 0], decoder.embed(encoded)
            )
            places = torch.cat([row.new_zeros(prefix, row.shape[2]), sincos_positions(row.shape[2], grid).to(row)])
            predicted = latent.head(decoder.encoder(Tokens(row + places)).x[0, prefix:][masked])
            errors.append((predicted - target[masked]).square().mean())
            if latent.summary_head is not None:
                summary = latent.summary_head(encoded[0, 0] if prefix else encoded[0].mean(dim=0))
                summaries.append((summary - summary_target).square().mean())
        of_tokens.append(torch.stack(errors).mean())
        of_summary.append(torch.stack(summaries).mean() if summaries else errors[0].new_zeros(()))
    return torch.stack(of_tokens), torch.stack(of_summary)


@pytest.mark.parametrize(
    "kind, changes",
    [*((kind, {}) for kind in KINDS)]
    + [("images", {"target_norm": "none"}), ("images", {"summary": 0.0}), ("clips", {"target_norm": "token"})],
    ids=str,
)
def test_errors_and_gradients_are_those_of_the_definition(kind, changes):
    latent, inputs, noise = make(kind, **changes)
    found, expected = latent(*inputs, noise), by_definition(latent, inputs, noise)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-9)
    own = [parameter for parameter in latent.parameters() if parameter.requires_grad]
    gradients = [torch.autograd.grad((a + b).sum(), own, allow_unused=True) for a, b in (found, expected)]
    for ours, theirs in zip(*gradients, strict=True):
        if theirs is None or not theirs.any():
            assert ours is None or ours.abs().max() < 1e-12
        else:
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-9)


@pytest.mark.parametrize("masked", ["latents", "patches"])
@pytest.mark.parametrize("kind", ["clips", "images"])
def test_what_is_not_used_is_not_trained(kind, masked):
    """Norms and pooling before a head: several processes would wait for their gradients."""
    torch.manual_seed(0)
    model, inputs, noise = clips() if kind == "clips" else images(pool="attention", head_norm=True)
    if masked == "latents":
        wrapper = LatentPrediction(model, CONFIG, steps=10).double()
        wrapper.follow()
        wrapper(*inputs, noise).tokens.sum().backward()
    else:
        wrapper = MaskedAutoencoder(model, MaskedConfig(ratio=0.6, dim=16, heads=2), 64 if kind == "clips" else 18)
        wrapper.double().freeze_unused()
        wrapper(*inputs, noise[:, 0]).predicted.sum().backward()
    summaries = {f"summary_head.{name}" for name in ("weight", "bias")}
    weights = {name: weight for name, weight in wrapper.named_parameters() if name not in summaries}
    assert all((weight.grad is not None) == weight.requires_grad for weight in weights.values())
    left = {name.split(".")[1] for name, weight in weights.items() if not weight.requires_grad}
    assert left == ({"head_norm"} if kind == "clips" else {"head_norm", "attention_pool"})


def test_what_is_masked_is_not_seen_by_the_student():
    latent, (batch,), noise = make("images of one size", masks=1)
    noise = noise[:, :1, :, :4]
    masked = noise.flatten(2).argsort(dim=2).argsort(dim=2) < int(count_masked(16, 0.6))
    pixels = masked.view(4, 1, 4, 4).repeat_interleave(3, 2).repeat_interleave(3, 3)
    seen = []
    latent.decoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].x))
    for changed in (batch, batch.where(~pixels, torch.randn_like(batch)), batch.where(pixels, torch.randn_like(batch))):
        latent(changed, noise)
    torch.testing.assert_close(seen[1], seen[0], rtol=0, atol=1e-12)
    assert (seen[2] - seen[0]).abs().max() > 1e-3


def test_settings_that_cannot_work_are_refused_by_a_sentence():
    with pytest.raises(UserError, match="ratio must be more than 0"):
        LatentConfig(ratio=0.0)
    with pytest.raises(UserError, match="dim must be a multiple of 12 with 6 heads, not 16"):
        LatentConfig(dim=16).decoder(EncoderConfig(dim=24, heads=6))


def test_the_loss_is_a_sum_over_samples():
    latent, inputs, noise = make("clips")
    objective, batch = MaskedLatents(0.5), Batch((*inputs, noise), torch.zeros(3))
    whole = objective.loss(latent, batch)
    parts = [Batch(tuple(x[i : i + 1] for x in batch.inputs), batch.targets[:1]) for i in range(3)]
    torch.testing.assert_close(sum(objective.loss(latent, part) for part in parts), whole, rtol=0, atol=1e-10)
    assert objective.count(batch) == 3
    metrics = objective.metrics(objective.evaluate(latent, batch))
    assert metrics["loss"] == pytest.approx(whole.item() / 3)
    assert metrics["loss"] == pytest.approx(metrics["tokens"] + 0.5 * metrics["summary"])


def test_without_a_teacher_there_is_nothing_to_predict():
    latent, inputs, noise = make("images")
    latent.following = False
    with pytest.raises(UserError, match=r"call follow\(\) before training"):
        latent(*inputs, noise)


def test_the_teacher_is_the_running_average():
    latent, _, _ = make("images", ema=0.5, ema_end=0.9)
    before = {name: t.clone() for name, t in latent.teacher.named_buffers()}
    student = dict(latent.model.named_parameters())
    assert {name.replace("/", ".") for name in before} == set(student)
    latent.update(step=5)
    for name, average in latent.teacher.named_buffers():
        expected = 0.7 * before[name] + 0.3 * student[name.replace("/", ".")]
        torch.testing.assert_close(average, expected, rtol=0, atol=1e-12)
        assert not average.requires_grad
    latent.update(step=20)  # beyond the end of a training that is longer than planned
    assert all(t.isfinite().all() for t in latent.teacher.buffers())


def test_the_teacher_has_neither_dropout_nor_gradients_and_leaves_the_student_in_training():
    model, inputs, noise = images(replace(ENCODER, dropout=0.5, drop_path=0.5))
    latent = LatentPrediction(model, CONFIG, steps=10).double().train()
    latent.follow()
    first, second = (latent.targets(inputs) for _ in range(2))
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a, b) and not a.requires_grad
    assert all(module.training for module in latent.modules())
    assert not torch.equal(latent(*inputs, noise).tokens, latent(*inputs, noise).tokens)


def test_the_attention_that_is_recorded_is_the_student_s_and_the_decoder_s():
    latent, inputs, noise = make("images")
    with record_attention() as calls:
        latent(*inputs, noise)
    assert [call.q.shape[1] * call.q.shape[3] for call in calls] == [32, 32, 32, 16]


@pytest.mark.parametrize("how", ["lora", "last:1", "bitfit"])
def test_the_teacher_shares_what_is_not_trained(how):
    torch.manual_seed(0)
    model, inputs, noise = images()
    latent = LatentPrediction(model, CONFIG, steps=10).double()
    tune(latent.model, how, head=())
    latent.follow()
    trained = {name for name, p in latent.model.named_parameters() if p.requires_grad}
    assert {name.replace("/", ".") for name, _ in latent.teacher.named_buffers()} == trained
    assert 0 < len(trained) < len(list(latent.model.parameters()))
    assert all(p.requires_grad for part in (latent.decoder, latent.head) for p in part.parameters())
    whole = copy.deepcopy(latent)  # the same targets as with a teacher of its own
    whole.model.requires_grad_(True)
    whole.teacher = torch.nn.Module()
    whole.follow()
    for ours, theirs in zip(latent.targets(inputs), whole.targets(inputs), strict=True):
        assert torch.equal(ours, theirs)
    before = latent.targets(inputs).tokens
    with torch.no_grad():
        for parameter in latent.model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1)
    assert torch.equal(latent.targets(inputs).tokens, before)
    latent.update(5)
    assert not torch.equal(latent.targets(inputs).tokens, before)
    latent(*inputs, noise).tokens.sum().backward()
    for name, parameter in latent.model.named_parameters():
        assert (parameter.grad is None) == (name not in trained) or "head" in name, name


def test_adapters_are_the_teacher_s_too():
    torch.manual_seed(0)
    model, inputs, _ = images()
    latent = LatentPrediction(tune(model, "lora", head=()), CONFIG, steps=10).double()
    latent.follow()
    assert adapters.names(latent.model)
    size = sum(t.numel() for t in latent.teacher.buffers())
    assert size < 0.3 * sum(p.numel() for p in latent.model.parameters())
    plain = latent.targets(inputs).tokens
    for buffer in latent.teacher.buffers():
        torch.nn.init.normal_(buffer)
    assert not torch.equal(latent.targets(inputs).tokens, plain)


def test_the_frame_of_a_short_text_is_seen_whatever_the_ratio():
    """Of nine, 23 and four tokens 7, 18 and 3 would be masked, if the two of the frame were not spared."""
    model, inputs, noise = texts()
    noise[:, :, 0] = torch.inf
    for number, length in enumerate((9, 23, 4)):
        noise[number, :, length - 1] = torch.inf
    latent = LatentPrediction(model, replace(CONFIG, ratio=0.8), steps=10, spared=2).double()
    latent.follow()
    seen = []
    hook = model.encoder.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    latent(*inputs, noise)
    hook.remove()
    (student,) = (tokens for tokens in seen if tokens.selection is not None)
    assert student.packing.lengths.tolist() == [2] * 3 + [5] * 3 + [2] * 3
    position = student.selection.tokens().position.split([2] * 3 + [5] * 3 + [2] * 3)
    lengths = [9] * 3 + [23] * 3 + [4] * 3
    for places, length in zip(position, lengths, strict=True):
        assert places[0] == 0 and places[-1] == length - 1
