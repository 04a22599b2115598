"""Tokens and operations are those that the model really has; the trace is one that a viewer opens."""

import json
from dataclasses import replace

import pytest
import torch
from points import Mixer, Points, collate
from torch.utils.flop_counter import FlopCounterMode

from audio import AST, ASTConfig
from core import Classification, EncoderConfig, attention_backend
from core.attention.flops import flop_counter
from core.objectives import Batch, Distillation, LatentConfig, LatentPrediction
from core.sparse import Local
from core.training import Task, TrainConfig, fit
from core.training.sampling import Order
from core.training.throughput import Throughput
from core.training.tracking import read_metrics
from text import TextConfig, TextEncoder
from vision import ViT, ViTConfig

ENCODER = EncoderConfig(dim=32, depth=2, heads=2)


def measured(model, inputs, samples, lengths=None):
    throughput = Throughput(Order(0, 100, 10, lengths, bucket=lengths is not None), processes=1)
    throughput.measure(model, [lambda: model(*inputs).sum()], samples, "fp32")
    return throughput


@pytest.mark.parametrize("shared_groups", [None, 1])
def test_operations_are_those_that_torch_counts(shared_groups):
    model = ViT(ViTConfig(image_size=32, patch_size=8, encoder=replace(ENCODER, shared_groups=shared_groups)))
    images = torch.randn(4, 3, 32, 32)
    found = measured(model, (images,), list(range(4)))
    with FlopCounterMode(display=False) as counter, attention_backend("reference"):
        model(images)
    assert found.operations[0] * 4 == 3 * counter.get_total_flops()
    assert found.tokens == [17]
    assert model.training and not any(module._forward_hooks for module in model.modules())


def test_views_that_evaluation_averages_are_no_operations_of_training():
    view, images = ViTConfig(image_size=32, patch_size=8, encoder=ENCODER), torch.randn(4, 3, 32, 32)
    clip, waveforms = ASTConfig(sample_rate=8000, max_frames=64, encoder=ENCODER), [torch.randn(2000)] * 4
    for make, plain, averaging, inputs in (
        (ViT, view, {"flip_average": True}, images),
        (AST, clip, {"speeds": (90, 110)}, waveforms),
    ):
        alone = measured(make(plain), (inputs,), list(range(4)))
        averaged = measured(make(replace(plain, **averaging)), (inputs,), list(range(4)))
        assert (averaged.operations, averaged.tokens) == (alone.operations, alone.tokens)


def test_what_a_teacher_computes_has_no_backward_pass():
    """The teacher of masked latents, and that of a distillation."""
    config = ViTConfig(image_size=32, patch_size=8, encoder=ENCODER, classes=3)
    images, noise = torch.randn(4, 3, 32, 32), torch.rand(4, 2, 4, 4)
    latent = LatentPrediction(ViT(config), LatentConfig(masks=2, ratio=0.6), steps=10)
    latent.follow()
    distilled, batch = Distillation(teacher=ViT(config)), Batch((images,), torch.zeros(4, dtype=torch.int64))
    model = ViT(config)
    for trained, loss, teacher in (
        (latent, lambda: latent(images, noise).tokens.sum(), lambda: latent.targets((images,))),
        (model, lambda: distilled.loss(model, batch), lambda: distilled.teach(batch, torch.device("cpu"))),
    ):
        totals = []
        for run in (loss, teacher):
            with flop_counter() as counter:
                run()
            totals.append(counter.get_total_flops())
        throughput = Throughput(Order(0, 100, 10), processes=1)
        throughput.measure(trained, [loss], list(range(4)), "fp32")
        assert throughput.operations[0] * 4 == 3 * (totals[0] - totals[1]) + totals[1]
        assert 0 < totals[1] < totals[0]
        # 17 tokens of each image; of two masks, the class token and the 6 patches that are left of 16.
        assert throughput.tokens[0] == (2 * 7 + 2 * 17 if trained is latent else 17)


def test_the_operations_of_a_run_are_those_of_its_samples(tmp_path):
    task = Task(Mixer(), Classification(), Points(30), Points(8), collate, in_memory=True)
    found = fit(task, TrainConfig(steps=7, batch_size=12, accumulate=3, precision="fp32", device="cpu"), tmp_path)
    with FlopCounterMode(display=False) as counter, attention_backend("reference"):
        Mixer().eval()(torch.randn(4, 3))
    assert found.operations == pytest.approx(3 * 7 * 12 * counter.get_total_flops() / 4)


def test_what_a_pattern_leaves_out_is_no_operation():
    images = torch.randn(1, 3, 256, 256)
    dense, sparse = (
        measured(ViT(ViTConfig(image_size=256, patch_size=8, encoder=replace(ENCODER, patterns=p))), (images,), [0])
        for p in (None, Local(64))
    )
    attention = 3 * 2 * 4 * 1025**2 * 32
    assert 0.8 * attention < dense.operations[0] - sparse.operations[0] < attention


def test_padding_is_no_token():
    """Batches of like length hold more tokens than others: rates go by the lengths of what was trained on."""
    lengths = torch.randint(3, 30, (100,), generator=torch.Generator().manual_seed(0)).tolist()
    mask = torch.arange(30) < torch.tensor(lengths[:5])[:, None]
    model = TextEncoder(TextConfig(vocab_size=50, max_length=30, encoder=ENCODER))
    found = measured(model, (torch.randint(50, (5, 30)), mask), list(range(5)), lengths)
    assert found.tokens == [1]
    order = Order(0, 100, 10, lengths, bucket=lengths is not None)
    expected = sum(lengths[index] for step in (2, 3, 4) for _, index in order.step(step))
    rates = found.rates(2, 5, seconds=0.5)
    assert rates["tokens_per_second"] == 2 * expected
    assert rates["samples_per_second"] == 60
    assert rates["mfu"] == pytest.approx(2 * expected * found.operations[0] / found.peak)


def test_rates_and_trace_of_a_run(tmp_path):
    config = TrainConfig(steps=8, batch_size=6, log_every=4, precision="fp32", device="cpu", workers=0, profile=True)
    fit(Task(Mixer(), Classification(), Points(30), Points(9), collate), config, tmp_path)
    for row in read_metrics(tmp_path):
        assert row["tokens_per_second"] == pytest.approx(3 * row["samples_per_second"])
        assert 0 < row["mfu"] < 1 and 0 <= row["data_wait"] < 1
    trace = json.loads((tmp_path / "trace.json").read_text())
    steps = {event["name"] for event in trace["traceEvents"] if event["name"].startswith("ProfilerStep")}
    assert steps == {"ProfilerStep#2", "ProfilerStep#3", "ProfilerStep#4"}


@pytest.mark.parametrize("patterns", [None, Local(4)])
def test_texts_in_a_row_take_the_operations_of_each_alone(patterns):
    lengths = (9, 30, 1)
    texts = [torch.arange(n) for n in lengths]
    model = TextEncoder(TextConfig(vocab_size=50, max_length=30, encoder=replace(ENCODER, patterns=patterns)))
    alone = [measured(model, (ids[None],), [0]) for ids in texts]
    together = measured(model, (texts,), [0])
    assert together.tokens == [sum(lengths)]
    assert together.operations[0] == pytest.approx(sum(each.operations[0] for each in alone), rel=1e-3)
