"""The optimisers and the schedules of the learning rate."""

from itertools import pairwise

import pytest
import torch
from points import Mixer, build

from core import UserError
from core.training import TrainConfig
from core.training.optim import MUON_MOMENTUM, learning_rate, make_optimizer, set_learning_rate


@pytest.mark.parametrize("schedule", ["cosine", "linear", "wsd"])
def test_schedules_rise_to_the_peak_and_fall_to_the_least(schedule):
    settings = TrainConfig(steps=110, warmup=10, lr=1.0, min_lr=0.2, schedule=schedule, cooldown=0.25)
    rates = [learning_rate(settings, step) for step in range(111)]
    assert rates[:10] == pytest.approx([0.1 * (step + 1) for step in range(10)])
    assert rates[10] == 1.0 and rates[110] == pytest.approx(0.2)
    assert all(after <= before for before, after in pairwise(rates[10:]))
    middle = {"cosine": 0.6, "linear": 0.6, "wsd": 1.0}[schedule]
    assert rates[60] == pytest.approx(middle)
    if schedule == "wsd":
        assert rates[85] == 1.0 and rates[86] < 1.0 and rates[95] == pytest.approx(0.2 + 0.8 * 0.6)
    if schedule == "linear":
        assert rates[35] == pytest.approx(0.8)


def test_muon_is_torchs_for_the_matrices_of_blocks_and_adamw_for_the_rest():
    """Beside the two optimisers of torch, each with its own share of the same weights."""
    settings = TrainConfig(optimizer="muon", lr=0.02, weight_decay=0.1, layer_decay=0.5)
    torch.manual_seed(0)
    ours, theirs = Mixer(), Mixer()
    theirs.load_state_dict(ours.state_dict())
    optimizer = make_optimizer(ours, settings)
    names = {parameter: name for name, parameter in ours.named_parameters()}
    of_muon = {names[p] for group in optimizer.param_groups if group["muon"] for p in group["params"]}
    assert of_muon == {name for name, p in ours.named_parameters() if "blocks." in name and p.ndim == 2}
    groups = [
        {
            "params": [theirs.get_parameter(names[parameter]) for parameter in group["params"]],
            "weight_decay": group["weight_decay"],
            "lr": settings.lr * group["lr_scale"],
            "muon": group["muon"],
        }
        for group in optimizer.param_groups
    ]
    assert sum(len(group["params"]) for group in groups) == len(names)
    muon = torch.optim.Muon([g for g in groups if g["muon"]], momentum=MUON_MOMENTUM, adjust_lr_fn="match_rms_adamw")
    adamw = torch.optim.AdamW([g for g in groups if not g["muon"]], betas=settings.betas, fused=True)
    set_learning_rate(optimizer, settings.lr, 0)
    for step in range(5):
        for model in (ours, theirs):
            generator = torch.Generator().manual_seed(step)
            for parameter in model.parameters():
                parameter.grad = torch.randn(parameter.shape, generator=generator)
        for part in (optimizer, muon, adamw):
            part.step()
    assert all(torch.equal(p, theirs.get_parameter(name)) for name, p in ours.named_parameters())
    assert {len(optimizer.state[p]) for p in names} == {1, 3}  # a momentum; two averages and the number of steps


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"optimizer": "muon", "shard": True}, "needs whole matrices"),
        ({"optimizer": "adam"}, "optimizer must be 'adamw' or 'muon', not 'adam'"),
        ({"schedule": "wsd", "cooldown": 0.0}, "cooldown must be more than 0"),
    ],
)
def test_settings_of_the_optimiser_that_cannot_work_say_so(settings, words):
    with pytest.raises(UserError, match=words):
        TrainConfig(**settings)


def test_muon_without_matrices_of_an_encoder_is_refused():
    with pytest.raises(UserError, match="none of Sequential is trained: use adamw"):
        make_optimizer(build(), TrainConfig(optimizer="muon"))
