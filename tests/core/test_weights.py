import pytest
import torch
from torch import nn

from core import Move, WeightsError, convert, load

STATE = {
    "stem.weight": torch.ones(2, 2),
    "layer.0.q.weight": torch.full((1, 2), 1.0),
    "layer.0.k.weight": torch.full((1, 2), 2.0),
    "layer.1.q.weight": torch.full((1, 2), 3.0),
    "layer.1.k.weight": torch.full((1, 2), 4.0),
    "unused.count": torch.tensor(7),
}
KEYS = {
    "stem.{p}": "embed.{p}",
    ("layer.{i}.q.{p}", "layer.{i}.k.{p}"): "blocks.{i}.qk.{p}",
    "unused.{p}": None,
}


def test_rename_join_and_drop():
    converted = convert(STATE, KEYS)
    assert set(converted) == {"embed.weight", "blocks.0.qk.weight", "blocks.1.qk.weight"}
    assert converted["blocks.1.qk.weight"].tolist() == [[3, 3], [4, 4]]


def test_change_on_the_way():
    converted = convert({"cls": torch.zeros(1, 3)}, {"cls": Move("token", lambda t: t[0] + 1)})
    assert converted["token"].tolist() == [1, 1, 1]


def test_every_unknown_key_is_named():
    with pytest.raises(WeightsError, match=r"no rule for: pooler\.bias; no rule for: pooler\.weight"):
        convert({**STATE, "pooler.bias": torch.zeros(1), "pooler.weight": torch.zeros(1)}, KEYS)


def test_a_join_without_all_its_parts_names_the_missing_one():
    state = {key: value for key, value in STATE.items() if key != "layer.1.k.weight"}
    with pytest.raises(WeightsError, match=r"missing beside layer\.1\.q\.weight: layer\.1\.k\.weight"):
        convert(state, KEYS)


def test_loading_names_what_is_missing_too_much_or_misshapen():
    model = nn.Linear(2, 3)
    with pytest.raises(WeightsError) as error:
        load(model, {"weight": torch.zeros(3, 4), "gain": torch.zeros(1)})
    for part in ("not in the model: gain", "not in the checkpoint: bias", "weight: (3, 4) in the checkpoint, (3, 2)"):
        assert part in str(error.value)
    before = model.bias.clone()
    load(model, {"weight": torch.zeros(3, 2)}, fresh=("bias",))
    assert (model.weight == 0).all() and (model.bias == before).all()
