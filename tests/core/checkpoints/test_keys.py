import argparse
import os

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from core import Move, UserError, WeightsError, convert, load
from core.checkpoints.files import plain_state, read_state

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


def test_parts_of_a_join_that_do_not_fit_are_named():
    state = {**STATE, "layer.0.k.weight": torch.zeros(1, 3)}
    with pytest.raises(WeightsError, match=r"do not fit: layer\.0\.q\.weight \(1, 2\), layer\.0\.k\.weight \(1, 3\)"):
        convert(state, KEYS)
    with pytest.raises(WeightsError, match=r"do not fit: cls \(\)"):
        convert({"cls": torch.tensor(0.0)}, {"cls": Move("token", lambda t: t[0])})


def test_loading_names_what_is_missing_too_much_or_misshapen():
    model = nn.Linear(2, 3)
    with pytest.raises(WeightsError) as error:
        load(model, {"weight": torch.zeros(3, 4), "gain": torch.zeros(1)})
    for part in ("not in the model: gain", "not in the checkpoint: bias", "weight: (3, 4) in the checkpoint, (3, 2)"):
        assert part in str(error.value)
    before = model.bias.clone()
    for head in ({}, {"bias": torch.zeros(7)}):
        load(model, {"weight": torch.zeros(3, 2), **head}, fresh=("bias",))
        assert (model.weight == 0).all() and (model.bias == before).all()


BARE = {"embed.weight": torch.zeros(2), "blocks.0.norm.weight": torch.ones(2), "head.bias": torch.zeros(1)}


def under(prefix, state=BARE):
    return {f"{prefix}{key}": tensor for key, tensor in state.items()}


CHECKPOINTS = {
    "bare": BARE,
    "DistributedDataParallel": under("module."),
    "torch.compile": under("_orig_mod."),
    "torch.compile of DistributedDataParallel": under("_orig_mod.module."),
    "DistributedDataParallel of torch.compile": under("module._orig_mod."),
    "an attribute": under("model."),
    "a part of a module": under("backbone."),
    "several": under("model.backbone.module."),
    "a backbone and its head": {**under("backbone.", dict(list(BARE.items())[:2])), "head.bias": BARE["head.bias"]},
    "a compiled block": {key.replace("blocks.0.", "blocks.0._orig_mod."): tensor for key, tensor in BARE.items()},
    "FSDP": {key.replace("blocks.0.", "blocks.0._fsdp_wrapped_module."): tensor for key, tensor in BARE.items()},
    "a state_dict": {"state_dict": BARE, "epoch": 3},
    "a model": {"model": BARE, "optimizer": {"state": {}}, "args": argparse.Namespace(lr=0.1)},
    "Lightning": {"state_dict": under("model."), "hyper_parameters": {"lr": 0.1}},
    "DeepSpeed": {"module": BARE, "global_steps": 3},
    "AveragedModel": {**under("module."), "n_averaged": torch.tensor(3)},
    "an average": {"state_dict": under("module."), "state_dict_ema": BARE},
    "nested twice": {"model": {"state_dict": under("module.")}},
}


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_what_wraps_a_model_leaves_its_weights_alone(name, tmp_path):
    torch.save(CHECKPOINTS[name], tmp_path / "pytorch_model.bin")
    found = plain_state(read_state(tmp_path), BARE.keys())
    assert found.keys() == BARE.keys() and all(torch.equal(found[key], BARE[key]) for key in BARE)


def test_a_prefix_that_is_wanted_stays():
    state = {"model.embed.weight": torch.zeros(1), "module.model.head.weight": torch.zeros(1)}
    assert plain_state(state, ["model.embed.weight", "model.head.weight"]).keys() == {
        "model.embed.weight",
        "model.head.weight",
    }


def test_two_tensors_for_one_key_are_an_error():
    with pytest.raises(WeightsError, match=r"two tensors for head\.bias"):
        plain_state({**BARE, "module.head.bias": torch.ones(1)}, BARE.keys())


def test_an_empty_checkpoint_is_refused():
    for checkpoint in ({}, {"state_dict": {}}):
        with pytest.raises(WeightsError, match="holds no weights: it is empty"):
            plain_state(checkpoint, wanted=())


def test_a_checkpoint_without_weights_says_what_it_holds():
    with pytest.raises(WeightsError, match="no weights, but: student, epoch"):
        plain_state({"student": BARE, "epoch": 3}, BARE.keys())


class Evil:
    def __reduce__(self):
        return os.mkdir, ("evil",)


def test_reading_weights_runs_no_code(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"weight": torch.zeros(1), "more": Evil()}, "pytorch_model.bin")
    with pytest.raises(UserError, match=r"pytorch_model.bin .*could run code"):
        read_state(tmp_path)
    assert not os.path.exists("evil")


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize("content", [b"", b"x", b"not a checkpoint" * 100, b"PK\x03\x04" + b"\0" * 100])
def test_a_damaged_file_of_weights_gets_one_sentence(name, content, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=name) as error:
        read_state(tmp_path)
    assert "\n" not in str(error.value)


def test_which_file_of_weights_is_read(tmp_path):
    with pytest.raises(UserError, match=r"neither model.safetensors nor pytorch_model.bin"):
        read_state(tmp_path)
    torch.save([torch.zeros(1)], tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match="holds a list, not a model's"):
        read_state(tmp_path)
    save_file(BARE, tmp_path / "model.safetensors")
    assert read_state(tmp_path).keys() == BARE.keys()
    os.remove(tmp_path / "model.safetensors")
    os.mkfifo(tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="a pipe, socket or device"):
        read_state(tmp_path)


def test_of_parameters_that_are_one_a_single_key_is_enough():
    model = nn.ModuleDict({"words": nn.Linear(2, 3), "out": nn.Linear(2, 3)})
    model.out.weight = model.words.weight
    weights = {"words.weight": torch.ones(3, 2), "words.bias": torch.ones(3), "out.bias": torch.ones(3)}
    load(model, weights)
    assert (model.out.weight == 1).all() and model.out.weight is model.words.weight
    with pytest.raises(WeightsError, match=r"not in the checkpoint: words.weight; not in the checkpoint: out.weight"):
        load(model, {key: tensor for key, tensor in weights.items() if key != "words.weight"})


def test_weights_are_taken_over_only_if_they_are_given_and_whole():
    table = torch.arange(12.0).reshape(4, 3)
    given = {
        "0.weight": table[1:].clone(),
        "0.bias": torch.ones(3),
        "1.weight": table[:3],
        "1.bias": torch.ones(3).half(),
    }
    for take in (False, True):
        model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
        load(model, given, take=take)
        own = dict(model.named_parameters())
        assert all(torch.equal(own[key], tensor.float()) and own[key].requires_grad for key, tensor in given.items())
        shared = {key for key, tensor in given.items() if own[key].data_ptr() == tensor.data_ptr()}
        assert shared == ({"0.weight", "0.bias"} if take else set())


def test_a_tensor_is_taken_over_once():
    model, one = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)), torch.ones(2, 2)
    load(model, {"0.weight": one, "1.weight": one}, take=True)
    model[0].weight.data.zero_()
    assert torch.equal(model[1].weight, torch.ones(2, 2))


def test_what_is_read_does_not_change_with_its_file(tmp_path):
    save_file({"a": torch.ones(100_000)}, tmp_path / "model.safetensors")
    state = read_state(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"")
    assert torch.equal(state["a"], torch.ones(100_000))
