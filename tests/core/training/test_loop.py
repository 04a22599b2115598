"""Exactness of the loop: accumulation, resuming, evaluation, signals."""

import os
import signal
from itertools import pairwise

import pytest
import torch
from points import Mixer, Points, build, collate

from core import IGNORE, Classification, EncoderConfig, UserError
from core.training import Task, TrainConfig, fit
from core.training.checkpoint import checkpoints, read_record
from core.training.optim import learning_rate, make_optimizer, set_learning_rate
from core.training.throughput import TIMED
from core.training.tracking import read_metrics
from examples.multimodal.model import ContrastiveModel, MultimodalConfig

SMALL = EncoderConfig(dim=16, depth=2, heads=2)


def config(**changes):
    plain = {"steps": 23, "batch_size": 12, "warmup": 5, "lr": 1e-2, "log_every": 1, "eval_every": 10}
    return TrainConfig(**{**plain, "save_every": 10, "precision": "fp32", "device": "cpu", **changes})


def train(run, model=None, data=None, resume=False, **changes):
    run.mkdir(exist_ok=True)
    data = data or Points(ignore=True)
    model = model or build()
    task = Task(model, Classification(), data, Points(17), collate, validation=Points(14), in_memory=True)
    return fit(task, config(**changes), run, resume=resume)


def same_rows(run, other):
    rows = [[{k: v for k, v in row.items() if k not in TIMED} for row in read_metrics(r)] for r in (run, other)]
    assert rows[0] == rows[1]


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.parametrize("accumulate", [2, 3, 4, 12])
def test_accumulation_equals_the_big_batch(tmp_path, accumulate):
    """Targets to ignore fall unevenly on the micro-batches: what counts is targets, not micro-batches."""
    whole = train(tmp_path / "whole")
    parts = train(tmp_path / "parts", accumulate=accumulate)
    torch.testing.assert_close(weights(parts.model), weights(whole.model), rtol=1e-5, atol=1e-6)


def test_a_step_without_a_valid_target_changes_no_weights_by_gradient(tmp_path):
    data = Points()
    data.targets[:] = IGNORE
    model = build()
    before = weights(model).clone()
    found = train(tmp_path / "run", model, data, weight_decay=0.0)
    torch.testing.assert_close(weights(found.model), before)
    assert all(row["loss"] == 0 for row in read_metrics(tmp_path / "run") if "loss" in row)


class Stop:
    """A model that sends its own process a signal while training."""

    def __init__(self, model, after):
        self.calls, self.after = 0, after
        model.register_forward_hook(self)

    def __call__(self, module, inputs, output):
        self.calls += module.training
        if self.calls == self.after:
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("stop_at, ema, workers", [(1, 0.0, 0), (13, 0.9, 0), (14, 0.0, 1), (20, 0.9, 0)])
def test_stop_and_resume_is_bit_identical(tmp_path, stop_at, ema, workers):
    """Mid-epoch, with accumulation, dropout and augmentation; SIGTERM lands inside a step."""
    changes = {"accumulate": 3, "ema": ema, "workers": workers}
    whole = train(tmp_path / "whole", build(dropout=0.2), **changes)

    model = build(dropout=0.2)
    Stop(model, 3 * stop_at - 1)
    stopped = train(tmp_path / "parts", model, **changes)
    assert not stopped.finished and stopped.step == stop_at
    resumed = train(tmp_path / "parts", build(dropout=0.2, seed=9), resume=True, **changes)

    assert resumed.finished
    assert torch.equal(weights(resumed.model), weights(whole.model))
    assert resumed.metrics == whole.metrics
    same_rows(tmp_path / "parts", tmp_path / "whole")


def test_a_run_with_muon_is_resumed_bit_for_bit(tmp_path):
    changes = {"optimizer": "muon", "schedule": "wsd", "ema": 0.9}
    whole = train(tmp_path / "whole", Mixer(), **changes)
    model = Mixer()
    Stop(model, 13)
    assert not train(tmp_path / "parts", model, **changes).finished
    resumed = train(tmp_path / "parts", Mixer(), resume=True, **changes)
    assert torch.equal(weights(resumed.model), weights(whole.model))
    same_rows(tmp_path / "parts", tmp_path / "whole")


def test_a_crash_repeats_what_came_after_the_checkpoint(tmp_path):
    """Rows logged after the newest checkpoint are written again, not twice."""
    whole = train(tmp_path / "whole")

    class Crash(RuntimeError):
        pass

    def crash(module, inputs, output):
        crash.calls += module.training
        if crash.calls == 17:
            raise Crash

    crash.calls = 0
    model = build()
    model.register_forward_hook(crash)
    with pytest.raises(Crash):
        train(tmp_path / "parts", model)
    with (tmp_path / "parts" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 17, "lo')  # and the last row is cut short
    resumed = train(tmp_path / "parts", build(seed=9), resume=True)
    assert torch.equal(weights(resumed.model), weights(whole.model))
    same_rows(tmp_path / "parts", tmp_path / "whole")


def test_a_run_does_not_go_back(tmp_path):
    train(tmp_path / "run", steps=20)
    with pytest.raises(UserError, match=r"is at step 20 already: --train\.steps must be more than 15"):
        train(tmp_path / "run", steps=15, resume=True)


def test_the_newest_checkpoints_are_kept_whole_and_the_best(tmp_path):
    train(tmp_path / "run", steps=9, save_every=1, eval_every=1, keep=3)
    folder = tmp_path / "run" / "checkpoints"
    accuracies = [row["validation_accuracy"] for row in read_metrics(tmp_path / "run")]
    best = accuracies.index(max(accuracies)) + 1
    assert best < 7
    assert [path.name for path in checkpoints(folder)] == [f"step-{step:08d}" for step in (best, 7, 8, 9)]
    assert sorted(os.listdir(folder)) == [path.name for path in checkpoints(folder)]
    assert [read_record(path)["step"] for path in checkpoints(folder)] == [best, 7, 8, 9]


def test_learning_rate_and_groups():
    settings = config(steps=100, warmup=10, lr=1.0, min_lr=0.1, layer_decay=0.5)
    rates = [learning_rate(settings, step) for step in range(100)]
    assert rates[0] == 0.1 and rates[9] == 1.0 and rates[10] == 1.0
    assert all(a >= b for a, b in pairwise(rates[10:]))
    assert rates[-1] == pytest.approx(0.1, abs=1e-3)

    model = Mixer()
    model.out.weight.no_decay = True
    blocks = model.encoder.blocks
    groups = make_optimizer(model, settings).param_groups
    found = {id(p): (g["lr_scale"], g["weight_decay"]) for g in groups for p in g["params"]}
    assert found[id(model.embed.weight)] == (0.125, 0.0)
    assert found[id(blocks[0].mlp.up.bias)] == (0.25, 0.0)
    assert found[id(blocks[1].mlp.up.weight)] == (0.5, 0.05)
    assert found[id(model.encoder.final_norm.weight)] == (1.0, 0.0)
    assert found[id(model.head.weight)] == (1.0, 0.05)


@pytest.mark.parametrize("towers", [True, False])
def test_layers_of_encoders_side_by_side(towers):
    """Layer-wise options act on a model whose encoders are in a list."""
    model = ContrastiveModel(MultimodalConfig(towers=towers, encoder=SMALL))
    optimizer = make_optimizer(model, TrainConfig(layer_decay=0.5, unfreeze=10))
    found = {id(p): (g["lr_scale"], g["starts"]) for g in optimizer.param_groups for p in g["params"]}
    assert len(found) == len(list(model.parameters()))
    for encoder in model.encoders:
        assert found[id(encoder.blocks[0].mlp.up.weight)] == (0.25, 20)
        assert found[id(encoder.blocks[1].mlp.up.weight)] == (0.5, 10)
        assert found[id(encoder.final_norm.weight)] == (1.0, 0)
    assert found[id(model.projections[2].weight)] == (1.0, 0)
    assert {found[id(parameter)] for parameter in model.embed.parameters()} == {(0.125, 30)}


@pytest.mark.parametrize("option", ["layer_decay", "unfreeze"])
def test_an_option_without_effect_is_refused(option):
    with pytest.raises(UserError, match=f"--train.{option.replace('_', '-')} has no effect on Sequential"):
        make_optimizer(build(), TrainConfig(**{option: {"layer_decay": 0.5, "unfreeze": 3}[option]}))


def test_layers_are_unfrozen_one_by_one():
    model = Mixer()
    blocks = model.encoder.blocks
    optimizer = make_optimizer(model, TrainConfig(unfreeze=10, layer_decay=0.5))
    parts = {"head": model.head, "1": blocks[1].mlp.up, "0": blocks[0].mlp.up, "embed": model.embed}
    for step, trained in ((0, ["head"]), (9, ["head"]), (10, ["head", "1"]), (29, ["head", "1", "0"]), (30, [*parts])):
        set_learning_rate(optimizer, 1.0, step)
        rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
        assert [name for name, part in parts.items() if rates[id(part.weight)] > 0] == trained
    before = [p.clone() for p in model.encoder.blocks.parameters()]
    set_learning_rate(optimizer, 1.0, 0)
    sum(p.sum() for p in model.parameters()).backward()
    optimizer.step()
    assert all(torch.equal(p, old) for p, old in zip(model.encoder.blocks.parameters(), before, strict=True))


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"batch_size": 10, "accumulate": 3}, "batch-size 10 cannot be cut into 3 equal"),
        ({"steps": 0}, "steps must be at least 1, not 0"),
        ({"device": "cuda"}, "there is no such device here"),
        ({"precision": "fp16"}, "fp16 needs a GPU"),
    ],
)
def test_settings_that_cannot_work_say_so(tmp_path, changes, words):
    if changes.get("device") == "cuda" and torch.cuda.is_available():
        return
    with pytest.raises(UserError, match=words):
        train(tmp_path / "run", **changes)


def test_bf16_trains_to_the_same_place(tmp_path):
    full, half = (train(tmp_path / p, data=Points(200), steps=100, precision=p) for p in ("fp32", "bf16"))
    assert half.precision == "bf16"
    assert abs(half.metrics["loss"] - full.metrics["loss"]) < 0.02
