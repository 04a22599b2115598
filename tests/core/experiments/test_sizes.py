"""How large a model and how long its training is: what holds for any numbers of samples and of tokens."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core import UserError
from core.experiments.command import given_fields, parse_experiment
from core.experiments.sizes import (
    ACTIVATIONS,
    BATCHES,
    BUDGET,
    FEWEST_EPOCHS,
    FEWEST_STEPS,
    LONGEST,
    MOST_EPOCHS,
    SIZES,
    batch_size,
    chosen_size,
    exposures,
    learning_rate,
    operations,
    regularisation,
    schedule,
)
from core.experiments.sizing import settle, with_settings
from vision.train import VISION, digits

SAMPLES, TOKENS, DEVICES = st.integers(1, 10**8), st.integers(1, 4096), st.sampled_from(["cpu", "mps", "cuda"])
NAMES = st.sampled_from([*SIZES])


@given(SAMPLES, SAMPLES, TOKENS, NAMES, DEVICES)
def test_more_samples_are_never_seen_less(one, other, tokens, name, device):
    few, many = sorted((one, other))
    cost = SIZES[name].operations(tokens)
    assert exposures(few, cost, device) <= exposures(many, cost, device)
    assert batch_size(few, device) <= batch_size(many, device)
    assert regularisation(few) >= regularisation(many)


@given(SAMPLES, TOKENS, TOKENS, NAMES, DEVICES)
def test_shorter_samples_are_never_seen_less(samples, one, other, name, device):
    short, long = sorted((one, other))
    size = SIZES[name]
    assert exposures(samples, size.operations(short), device) >= exposures(samples, size.operations(long), device)


@given(SAMPLES, TOKENS, NAMES, DEVICES)
def test_training_is_bounded(samples, tokens, name, device):
    """By epochs, and by the time that it takes; that is stretched only to see each sample a few times."""
    cost = SIZES[name].operations(tokens)
    seen = exposures(samples, cost, device)
    assert 1 <= seen <= MOST_EPOCHS * samples
    assert seen * cost <= LONGEST * BUDGET[device] * (1 + 1e-9) or seen == 1
    if seen * cost > BUDGET[device] * (1 + 1e-9) and seen > 1:
        assert seen <= FEWEST_EPOCHS * samples
    assert 0 <= regularisation(samples) <= 1


@given(SAMPLES, TOKENS, NAMES, DEVICES, st.integers(1, 8), st.integers(1, 4), st.sampled_from(["none", "all", "part"]))
def test_a_schedule_fits_together(samples, tokens, name, device, processes, repeats, start):
    size = SIZES[name]
    plan = schedule(samples, tokens, size.dim, size.depth, device, start=start, processes=processes, repeats=repeats)
    least, most = BATCHES[device]
    assert least <= plan.batch_size <= most + processes * repeats
    assert plan.batch_size % (plan.accumulate * processes * repeats) == 0
    assert plan.steps >= FEWEST_STEPS and 1 <= plan.warmup <= plan.steps / 8
    assert plan.steps / 9 <= plan.every <= plan.steps
    assert 1e-5 < plan.lr <= 4e-3
    micro_batch = plan.batch_size // (plan.accumulate * processes)
    assert micro_batch == repeats or micro_batch * 64 * size.dim * size.depth * tokens <= ACTIVATIONS[device]


@given(st.integers(1, 10**5), st.integers(1, 5000), st.sampled_from([1, 2, 3, 4, 6]))
def test_what_is_given_stays_and_the_rest_follows(steps, batch, accumulate):
    plan = schedule(500, 64, 192, 6, "cpu", steps=steps, batch=batch, accumulate=accumulate)
    assert (plan.steps, plan.batch_size, plan.accumulate) == (steps, batch, accumulate)
    assert plan.warmup == max(steps // 10, 1) and plan.every == -(-steps // 8)
    assert plan.lr == learning_rate(192, batch, "none")


@given(SAMPLES, SAMPLES, TOKENS, DEVICES)
def test_fewer_and_longer_samples_never_make_a_larger_model(one, other, tokens, device):
    few, many = sorted((one, other))

    def width(samples: int, tokens: int, device: str = device) -> int:
        return chosen_size(samples, {name: size.operations(tokens) for name, size in SIZES.items()}, device).dim

    assert width(few, tokens) <= width(many, tokens) <= width(many, 1)
    assert width(many, tokens, "cpu") <= width(many, tokens, "cuda")


def test_some_sizes_are_what_they_were_meant_to_be():
    """Ten minutes on two cores for some hundred samples; larger models where data and device are."""
    by_size = {name: size.operations(65) for name, size in SIZES.items()}
    assert [chosen_size(count, by_size, "cuda").name for count in (500, 50_000, 10**7)] == ["tiny", "small", "small"]
    assert chosen_size(50_000, by_size, "cpu").name == "tiny"
    plan = schedule(500, 65, 192, 6, "cpu")
    assert plan.steps * plan.batch_size * operations(192, 6, 65) == pytest.approx(3e13, rel=0.05)
    assert schedule(20, 65, 192, 6, "cpu").steps == 20 * MOST_EPOCHS // 8
    assert schedule(6000, 20, 384, 6, "cpu", start="part").lr > 5 * schedule(6000, 20, 384, 6, "cpu", start="all").lr


# --- On the command line --------------------------------------------------------------------------------------------


def settled(*words):
    """An experiment of vision, as it is trained; its data are not looked at."""
    experiment = parse_experiment(VISION, ["digits", *words])[1]
    return settle(experiment, digits(), given_fields(words), None)[0]


def test_a_named_size_serves_named_data():
    experiment = settled("--size", "small", "--model.encoder.depth", "3")
    encoder = experiment.model.encoder
    assert (encoder.dim, encoder.depth, encoder.heads, encoder.mlp_dim) == (384, 3, 6, None)
    assert experiment.train == digits().train and experiment.model.image_size == 8
    assert parse_experiment(VISION, ["digits", "--model.size", "tiny"])[1].size == "tiny"


@pytest.mark.parametrize(
    "words, sentence",
    [
        (["--size", "auto"], "--size auto is for your own data: here choose tiny, small or base, or leave it out."),
        (["--size", "tiny", "--init", "run"], "--size has no effect beside --init, whose model is taken"),
    ],
)
def test_sizes_that_cannot_be(words, sentence):
    with pytest.raises(UserError, match=sentence):
        settled(*words)


def test_warm_up_evaluations_and_checkpoints_follow_the_number_of_steps():
    usual = digits().train
    short = settled("--train.steps", "300").train
    assert (short.warmup, short.eval_every) == (usual.warmup // 4, usual.eval_every // 4)
    assert short.save_every == round(usual.save_every / 4)
    assert settled("--train.steps", "300", "--train.warmup", "100").train.warmup == 100
    assert settled("--train.steps", "4").train.eval_every == 4
    assert settled("--train.lr", "0.1").train == replace(usual, lr=0.1)
    resumed = settle(replace(digits(), resume=True), digits(), {"train.steps"}, None)[0]
    assert resumed.train == usual


def test_settings_are_changed_where_they_are_not_given():
    changes = {"train.steps": 7, "model.encoder.dim": 8, "model.image_size": 16}
    changed = with_settings(digits(), changes, {"model.image_size"})
    assert (changed.train.steps, changed.model.encoder.dim, changed.model.image_size) == (7, 8, 8)
    assert given_fields(["--model.no-class-token", "--train.lr=1", "--size", "tiny"]) == {
        "model.class_token",
        "train.lr",
        "size",
    }
