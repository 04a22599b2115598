"""What the monitor sees: its figures against plain arithmetic, and the troubles it must catch."""

from contextlib import suppress

import pytest
import torch
from points import Points, collate
from torch import nn

from core import Batch, Classification, Encoder, EncoderConfig, Tokens, UserError, pool
from core.objectives.features import feature_figures, note_features
from core.sparse import Local
from core.training import Task, TrainConfig, fit
from core.training.monitor import FEWEST, Monitor
from core.training.tracking import read_metrics
from examples.multimodal.model import ContrastiveModel, MultimodalConfig


class Model(nn.Module):
    """Points as 6 tokens through an encoder."""

    def __init__(self, **changes):
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Linear(3, 6 * 16)
        self.encoder = Encoder(EncoderConfig(**{"dim": 16, "depth": 3, "heads": 2, **changes}))
        self.head = nn.Linear(16, 3)

    def forward(self, x):
        return self.head(pool(self.encoder(Tokens(self.embed(x).unflatten(1, (6, 16)))), "mean"))


def train(run, model, data=None, **changes):
    plain = {"steps": 30, "batch_size": 12, "warmup": 5, "lr": 3e-3, "log_every": 1, "eval_every": 30, "workers": 0}
    config = TrainConfig(**{**plain, "precision": "fp32", "device": "cpu", **changes})
    run.mkdir()
    fit(Task(model, Classification(), data or Points(60), Points(15), collate), config, run)


def alarms(run):
    return [(row["step"], text) for row in read_metrics(run) for text in row.get("alarms", [])]


def test_a_healthy_run_raises_no_alarm(tmp_path):
    train(tmp_path / "run", Model())
    assert alarms(tmp_path / "run") == []
    row = read_metrics(tmp_path / "run")[-1]
    for kind, places in (("grad_norm", 5), ("update", 5), ("logit", 3), ("entropy", 3)):
        assert sum(name.startswith(f"{kind}/") for name in row) == places
    assert 0 < row["entropy/0"] <= torch.tensor(6.0).log() + 1e-6


def test_figures_are_what_they_say(tmp_path):
    """Of one step without momentum: gradient, update, logits and entropy by hand."""
    model, batch = Model(patterns=Local(2, exact=True)), collate([Points(12)[i] for i in range(12)])
    monitor = Monitor(model)
    with monitor.watch():
        Classification().loss(model, batch).backward()
    grads = monitor.gradients(2.0)
    before = monitor.weights()
    expected = torch.cat([p.grad.flatten() for p in model.encoder.blocks[1].parameters()]).norm()
    assert grads["grad_norm/block 1"] == pytest.approx(2 * expected.item())
    with torch.no_grad():
        for parameter in model.head.parameters():
            parameter.mul_(1.25)
    updates = monitor.updates(before)
    output = [*model.encoder.final_norm.parameters(), *model.head.parameters()]
    changed = torch.cat([p.detach().flatten() / 1.25 * 0.25 for p in model.head.parameters()]).norm()
    assert updates["update/output"] == pytest.approx(
        (changed / torch.cat([p.flatten() for p in before["output"]]).norm()).item()
    )
    assert len(before["output"]) == len(output) and updates["update/block 0"] == 0
    weights = monitor.calls[2].weights[0]
    entropy = torch.special.entr(weights).sum(-1).mean().item()
    assert monitor.attention()["entropy/2"] == pytest.approx(entropy, rel=1e-5)


def test_the_blocks_of_several_encoders_have_figures_of_their_own():
    model = ContrastiveModel(MultimodalConfig(towers=True, encoder=EncoderConfig(dim=16, depth=2, heads=2)))
    names = {f"encoders.{tower} block {number}" for tower in range(3) for number in range(2)}
    assert Monitor(model).groups.keys() == {"embeddings", "output", *names}


def test_a_rate_far_too_high_is_seen_before_the_loss_is_lost(tmp_path):
    with suppress(UserError):
        train(tmp_path / "run", Model(), lr=30.0)
    step, text = alarms(tmp_path / "run")[0]
    assert "the learning rate is too high" in text
    assert all(torch.tensor(row["loss"]).isfinite() for row in read_metrics(tmp_path / "run") if row["step"] <= step)


def test_collapsing_attention_is_seen_and_placed(tmp_path):
    model = Model()
    with torch.no_grad():
        model.encoder.blocks[1].attention.qkv.weight.mul_(100)
    train(tmp_path / "run", model, steps=2)
    found = [text for _, text in alarms(tmp_path / "run")]
    assert any(text.startswith("attention logits of layer 1 reach") for text in found)
    assert not any("layer 0" in text or "layer 2" in text for text in found)


def test_single_large_logits_are_no_collapse():
    figures = {"logit/0": 114.0, "entropy/0": 2.3}  # of all-MiniLM-L6-v2, as it is published
    assert Monitor(Model()).alarms(figures) == []
    assert len(Monitor(Model()).alarms({**figures, "entropy/0": 0.1})) == 1


def test_a_dead_block_is_seen(tmp_path):
    model = Model()
    block = model.encoder.blocks[2]
    with torch.no_grad():  # nothing comes out of it, and nothing goes back in
        for layer in (block.attention.out, block.mlp.down):
            layer.weight.zero_()
            layer.register_forward_hook(lambda module, inputs, output: output.detach())
    train(tmp_path / "run", model, steps=3)
    assert alarms(tmp_path / "run") == [(1, "the gradient of block 2 is zero throughout: it learns nothing")]


def test_shuffled_labels_are_seen_as_a_jump(tmp_path):
    class Shuffled(Points):
        """From step 41 on, every label is another one."""

        def __getitem__(self, index):
            self.seen = getattr(self, "seen", 0) + 1
            point, target = super().__getitem__(index)
            return point, (target + 1) % 3 if self.seen > 40 * 12 else target

    train(tmp_path / "run", Model(), Shuffled(60, noise=0.1), steps=60)
    assert [step for step, text in alarms(tmp_path / "run") if "jumped" in text] == [41]


def test_noise_is_no_jump():
    torch.manual_seed(0)
    monitor = Monitor(nn.Linear(1, 1))
    falling = (torch.linspace(2, 0.5, 3000) + 0.15 * torch.randn(3000)).tolist()
    assert not any(map(monitor.spike, falling))
    assert monitor.spike(5.0) and not any(monitor.spike(5.0) for _ in range(FEWEST))


def test_a_skipped_step_is_no_jump_and_is_not_counted():
    monitor = Monitor(nn.Linear(1, 1))
    assert not any(monitor.spike(loss) for loss in (torch.nan, 1.0, torch.inf, *[0.001] * 100, torch.nan, 0.01))
    assert monitor.first == 1.0 and len(monitor.losses) > FEWEST


def test_a_hard_sample_is_no_jump_of_a_model_that_fits_the_rest():
    monitor = Monitor(nn.Linear(1, 1))
    monitor.spike(2.0)
    assert not any(monitor.spike(0.001 + 0.0001 * (step % 3)) for step in range(200))
    assert not monitor.spike(0.05) and monitor.spike(0.5)


def test_what_was_said_is_not_said_again_after_resuming():
    monitor, again = Monitor(nn.Linear(1, 1)), Monitor(nn.Linear(1, 1))
    assert monitor.alarms({"update/head": 1.0}) and not monitor.alarms({"update/head": 1.0})
    again.load(monitor.state())
    assert not again.alarms({"update/head": 1.0}) and again.alarms({"update/embed": 1.0})


def test_batches_without_attention_are_fine(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    config = TrainConfig(steps=3, batch_size=4, log_every=1, precision="fp32", device="cpu", workers=0)
    data = Points(12)
    fit(Task(nn.Linear(3, 3), Classification(), data, data, lambda s: Batch(*collate(s))), config, run)
    assert "grad_norm/output" in read_metrics(run)[0]


def test_features_that_an_objective_notes_are_logged(tmp_path):
    """Of the first micro-batch of each logged step, those of the pass whose gradient counts."""

    class Noting(Model):
        seen = []

        def forward(self, x):
            vectors = pool(self.encoder(Tokens(self.embed(x).unflatten(1, (6, 16)))), "mean")
            note_features(vectors)
            if self.training:
                self.seen.append(vectors.detach())
            return self.head(vectors)

    train(tmp_path / "run", Noting(), steps=4, accumulate=2, log_every=3)
    rows = {row["step"]: row for row in read_metrics(tmp_path / "run")}
    passes = Noting.seen[-8:]  # before them the operations are counted
    for step in (1, 3, 4):
        expected = {f"features/{name}": value for name, value in feature_figures(passes[2 * step - 2]).items()}
        assert {name: value for name, value in rows[step].items() if name.startswith("features/")} == expected
