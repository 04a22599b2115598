"""Checkpoints as people save them: every weight is found under whatever name, or its lack is an error that names it."""

import json
import pickle
import re

import pytest
import torch
from safetensors.torch import load_file, save_file
from text_peers import CLASSIC, make_peer, outputs

from core import UserError, WeightsError
from text import from_hf

KINDS = ("Model", "ForSequenceClassification", "ForMaskedLM")
BASE = {
    "Bert": "bert.",
    "Roberta": "roberta.",
    "DistilBert": "distilbert.",
    "Albert": "albert.",
    "ModernBert": "model.",
}
OPTIONAL = ("pooler.dense.", "pooler.bias", "pooler.weight")  # of a base model, which then has none


def saved(folder, family, kind, **changes):
    """A peer, its directory, and the tensors in that."""
    peer = make_peer(family, kind, **changes)
    peer.save_pretrained(folder)
    return peer, load_file(folder / "model.safetensors")


def rewrite(folder, state):
    save_file({key: tensor.contiguous() for key, tensor in state.items()}, folder / "model.safetensors")


def assert_equal_outputs(family, kind, peer, model):
    for found, expected in outputs(family, kind, peer, model):
        assert (found - expected).abs().max() <= 1e-4 * expected.abs().max()


def with_base(state, family):
    """The base model's weights inside a model around it."""
    return {key if key.startswith(BASE[family]) else BASE[family] + key: tensor for key, tensor in state.items()}


RENAMED = {
    "DDP": lambda key: f"module.{key}",
    "DDP twice": lambda key: f"module.module.{key}",
    "torch.compile": lambda key: f"_orig_mod.{key}",
    "compiled inside": lambda key: re.sub(r"\b(embeddings|layers?)\.", r"_orig_mod.\1.", key),
    "FSDP": lambda key: f"_fsdp_wrapped_module.{key}",
    "Lightning": lambda key: f"model.{key}",
    "another module": lambda key: f"student.backbone.{key}",
    "all of them": lambda key: f"module._orig_mod.net.{key}",
}


@pytest.mark.parametrize("how", RENAMED)
@pytest.mark.parametrize("family", CLASSIC)
def test_names_that_the_field_writes(family, how, tmp_path):
    kind = KINDS[(CLASSIC.index(family) + list(RENAMED).index(how)) % 3]
    peer, state = saved(tmp_path, family, kind)
    rewrite(tmp_path, {RENAMED[how](key): tensor for key, tensor in state.items()})
    assert_equal_outputs(family, kind, peer, from_hf(tmp_path))


@pytest.mark.parametrize("family", CLASSIC)
def test_a_base_model_with_or_without_its_prefix(family, tmp_path):
    peer, state = saved(tmp_path, family, "Model")
    rewrite(tmp_path, with_base(state, family))
    assert_equal_outputs(family, "Model", peer, from_hf(tmp_path))
    peer, state = saved(tmp_path, family, "ForSequenceClassification")
    rewrite(tmp_path, {key.removeprefix(BASE[family]): tensor for key, tensor in state.items()})
    assert_equal_outputs(family, "ForSequenceClassification", peer, from_hf(tmp_path))


def test_tensorflows_old_names(tmp_path):
    peer, state = saved(tmp_path, "Bert", "ForMaskedLM")
    old = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    for new, name in old.items():
        state = {key.replace(new, name): tensor for key, tensor in state.items()}
    rewrite(tmp_path, state)
    assert_equal_outputs("Bert", "ForMaskedLM", peer, from_hf(tmp_path))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", CLASSIC)
def test_what_is_missing_is_named(family, kind, tmp_path):
    _, state = saved(tmp_path, family, kind)
    inner = [key for key in state if ".0." in key][:1]
    outer = [key for key in state if "weight" in key and not any(part.isdecimal() for part in key.split("."))]
    for key in (*inner, *outer):
        rewrite(tmp_path, {other: tensor for other, tensor in state.items() if other != key})
        if kind == "Model" and any(part in key for part in OPTIONAL):
            continue
        with pytest.raises(WeightsError) as error:
            from_hf(tmp_path)
        assert key.removeprefix(BASE[family]) in str(error.value)


def test_a_base_model_without_a_pooler_has_none(tmp_path):
    _, state = saved(tmp_path, "Bert", "Model")
    rewrite(tmp_path, {key: tensor for key, tensor in state.items() if "pooler" not in key})
    first, second = from_hf(tmp_path), from_hf(tmp_path)
    assert not first.config.head_dense
    ids = torch.randint(5, 90, (2, 9))
    torch.testing.assert_close(first.features(ids), first.encode(ids).x[:, 0], rtol=0, atol=0)
    torch.testing.assert_close(first.features(ids), second.features(ids), rtol=0, atol=0)


@pytest.mark.parametrize(
    "extra", ["classifier.weight", "encoder.layer.7.output.dense.weight", "lm_head.bias", "crf.start"]
)
@pytest.mark.parametrize("family", ["Bert", "ModernBert"])
def test_what_is_left_over_is_named(family, extra, tmp_path):
    _, state = saved(tmp_path, family, "Model")
    rewrite(tmp_path, {**state, extra: torch.zeros(3)})
    with pytest.raises(WeightsError, match=extra):
        from_hf(tmp_path)


def test_a_masked_words_head_is_no_pooler(tmp_path):
    """Both are a dense layer of the same shape."""
    saved(tmp_path, "Bert", "ForMaskedLM")
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "architectures": ["BertModel"]}))
    with pytest.raises(WeightsError, match=r"cls\.predictions\.transform\.dense\.weight"):
        from_hf(tmp_path)


@pytest.mark.parametrize(
    "family, kind, extra",
    [
        ("Bert", "ForMaskedLM", "bert.pooler.dense.weight"),
        ("Bert", "ForMaskedLM", "cls.seq_relationship.weight"),
        ("Roberta", "ForSequenceClassification", "roberta.pooler.dense.weight"),
        ("Albert", "ForMaskedLM", "sop_classifier.classifier.weight"),
        ("Bert", "Model", "embeddings.position_ids"),
        ("Roberta", "ForMaskedLM", "roberta.embeddings.position_ids"),
        ("Bert", "ForSequenceClassification", "bert.embeddings.token_type_ids"),
        ("ModernBert", "Model", "layers.0.attn.rotary_emb.inv_freq"),
    ],
)
def test_what_is_known_to_be_unused_is_left_out(family, kind, extra, tmp_path):
    peer, state = saved(tmp_path, family, kind)
    rewrite(tmp_path, {**state, extra: torch.randn(64)})
    assert_equal_outputs(family, kind, peer, from_hf(tmp_path))


@pytest.mark.parametrize("family", ["Bert", "Albert"])
def test_a_model_for_pretraining_predicts_masked_words(family, tmp_path):
    peer = make_peer(family, "ForPreTraining")
    peer.save_pretrained(tmp_path)
    ids = torch.randint(5, 90, (2, 9))
    with torch.no_grad():
        expected = peer(ids).prediction_logits
        torch.testing.assert_close(from_hf(tmp_path)(ids), expected, rtol=0, atol=1e-4)
        torch.testing.assert_close(from_hf(peer)(ids), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("family, name", [("Bert", "cls.predictions.decoder"), ("Roberta", "lm_head.decoder")])
def test_a_decoder_that_was_saved_along(family, name, tmp_path):
    """Equal to the words it is tied to them, whatever the config says; other than they it is not."""
    peer, state = saved(tmp_path, family, "ForMaskedLM")
    words = state[f"{BASE[family]}embeddings.word_embeddings.weight"]
    rewrite(tmp_path, {**state, f"{name}.weight": words.clone()})
    model = from_hf(tmp_path)
    assert model.config.tie_weights
    assert_equal_outputs(family, "ForMaskedLM", peer, model)
    rewrite(tmp_path, {**state, f"{name}.weight": 2 * words})
    model = from_hf(tmp_path)
    assert not model.config.tie_weights
    torch.testing.assert_close(model.head.out.weight, 2 * model.embed.words.weight)


@pytest.mark.parametrize("family", CLASSIC)
def test_pickled_weights(family, tmp_path):
    peer, state = saved(tmp_path, family, "ForMaskedLM")
    (tmp_path / "model.safetensors").unlink()
    torch.save(peer.state_dict(), tmp_path / "pytorch_model.bin")
    assert_equal_outputs(family, "ForMaskedLM", peer, from_hf(tmp_path))
    torch.save({"epoch": 3, "state_dict": state}, tmp_path / "pytorch_model.bin")
    assert_equal_outputs(family, "ForMaskedLM", peer, from_hf(tmp_path))


@pytest.mark.parametrize("ending", ["safetensors", "bin"])
def test_weights_in_several_files(ending, tmp_path):
    peer, state = saved(tmp_path, "Bert", "Model")
    (tmp_path / "model.safetensors").unlink()
    stem = "model" if ending == "safetensors" else "pytorch_model"
    parts = {f"{stem}-1.{ending}": list(state)[::2], f"{stem}-2.{ending}": list(state)[1::2]}
    for name, keys in parts.items():
        part = {key: state[key] for key in keys}
        save_file(part, tmp_path / name) if ending == "safetensors" else torch.save(part, tmp_path / name)
    index = {"weight_map": {key: name for name, keys in parts.items() for key in keys}}
    (tmp_path / f"{stem}.{ending}.index.json").write_text(json.dumps(index))
    assert_equal_outputs("Bert", "Model", peer, from_hf(tmp_path))
    (tmp_path / f"{stem}-2.{ending}").unlink()
    with pytest.raises(UserError, match=f"There is no file of weights .*{stem}-2"):
        from_hf(tmp_path)


class Evil:
    def __reduce__(self):
        return print, ("a program ran",)


FAULTS = {
    "nothing": (lambda folder: None, "holds no weights: it has neither model.safetensors nor pytorch_model.bin"),
    "tensorflow": (lambda folder: (folder / "tf_model.h5").write_bytes(b"x"), "holds no weights: it has neither"),
    "a cut file": (lambda folder: (folder / "model.safetensors").write_bytes(b"\x10\0\0"), "cannot be read"),
    "junk": (lambda folder: (folder / "pytorch_model.bin").write_bytes(b"junk"), "is damaged|cannot be read"),
    "a program": (lambda folder: torch.save({"a": Evil()}, folder / "pytorch_model.bin"), "could run code"),
    "an old program": (
        lambda folder: (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Evil())),
        "could run code",
    ),
    "numbers": (
        lambda folder: torch.save({"a": 3}, folder / "pytorch_model.bin"),
        "holds no weights, but: a",
    ),
    "a pointer": (
        lambda folder: (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid x"),
        "is a pointer of Git LFS, and not the weights: run git lfs pull",
    ),
    "a directory": (lambda folder: (folder / "model.safetensors").mkdir(), "is a directory"),
    "no index": (
        lambda folder: (folder / "model.safetensors.index.json").write_text("{}"),
        "names no files of weights",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_files_that_are_no_weights(fault, tmp_path, capfd):
    saved(tmp_path, "Bert", "Model")
    (tmp_path / "model.safetensors").unlink()
    spoil, words = FAULTS[fault]
    spoil(tmp_path)
    with pytest.raises(UserError, match=words):
        from_hf(tmp_path)
    assert "a program ran" not in capfd.readouterr().out
