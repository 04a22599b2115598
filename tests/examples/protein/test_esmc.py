"""ESM C: equal outputs with transformers, on random weights, and under the names of EvolutionaryScale's esm package."""

import copy
import json
import re

import numpy as np
import pytest
import torch
import transformers
from protein_peers import SEQUENCES, assert_close, make_peer
from safetensors.torch import save_file

from core import UserError, sparsify
from core.experiments import predict_command
from examples.protein.alphabet import ESM2, Alphabet
from examples.protein.evaluate import Arguments as Evaluate
from examples.protein.evaluate import evaluate
from examples.protein.predict import Arguments as Predict
from examples.protein.predict import predict
from examples.protein.pretrained import from_hf, load_model

# What the esm package calls a tensor of transformers: of layers, and the rest (embed.weight, sequence_head.3.bias ...).
PACKAGE = {
    "input_layernorm": "attn.layernorm_qkv.0",
    "self_attn.q_norm": "attn.q_ln",
    "self_attn.k_norm": "attn.k_ln",
    "self_attn.o_proj": "attn.out_proj",
    "post_attention_layernorm": "ffn.0",
    "mlp.down_proj": "ffn.3",
    "embed_tokens": "embed",
    "norm": "transformer.norm",
    "lm_head.dense": "sequence_head.0",
    "lm_head.layer_norm": "sequence_head.2",
    "lm_head.decoder": "sequence_head.3",
}
# What its first checkpoints on the hub call a tensor of the package.
FUSED = {
    "layernorm_qkv.0.": "layernorm_qkv.layer_norm_",
    "layernorm_qkv.1.": "layernorm_qkv.",
    "ffn.0.": "ffn.layer_norm_",
    "ffn.1.": "ffn.fc1_",
    "ffn.3.": "ffn.fc2_",
    "sequence_head.": "lm_head.",
}


def package_state(peer):
    """The weights of an EsmcForMaskedLM as the esm package names and joins them."""
    state = {key.removeprefix("esmc."): tensor for key, tensor in peer.state_dict().items()}
    found = {}
    for layer in range(peer.config.num_hidden_layers):
        for parts, name in (
            (("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), "attn.layernorm_qkv.1"),
            (("mlp.gate_proj", "mlp.up_proj"), "ffn.1"),
        ):
            joined = [state.pop(f"layers.{layer}.{part}.weight") for part in parts]
            found[f"transformer.blocks.{layer}.{name}.weight"] = torch.cat(joined)
    for key, tensor in state.items():
        block, name, kind = re.fullmatch(r"(layers\.\d+\.)?(.+)\.(\w+)", key).groups()
        found[f"{(block or '').replace('layers', 'transformer.blocks')}{PACKAGE[name]}.{kind}"] = tensor
    return found


@pytest.mark.parametrize(
    "kind, changes",
    [
        ("EsmcModel", {}),
        ("EsmcForMaskedLM", {}),
        ("EsmcForMaskedLM", {"attention_bias": True, "mlp_bias": True, "num_hidden_layers": 2, "vocab_size": 33}),
        (
            "EsmcForMaskedLM",
            {"num_attention_heads": 4, "rope_parameters": {"rope_type": "default", "rope_theta": 500.0}},
        ),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equal_outputs(kind, changes, dtype):
    peer = make_peer(kind, **changes).to(dtype)
    model = from_hf(peer).to(dtype)
    ids, mask = Alphabet().encode(SEQUENCES)
    with torch.no_grad():
        expected = peer(ids, attention_mask=mask.long(), output_hidden_states=True)
        states = expected.last_hidden_state if kind == "EsmcModel" else expected.hidden_states[-1]
        encoded, reading, output = model.encode(ids, mask), model.read(ids, mask), model(ids, mask)
        layers = model.encoder.intermediate(
            model.tokens(ids, mask), range(3 if "num_hidden_layers" not in changes else 2)
        )
    assert_close(encoded.x[mask], states[mask])
    for found, state in zip(layers[:-1], expected.hidden_states[1:-1], strict=True):
        assert_close(found.x[mask], state[mask])
    real = mask[:, 2:]
    assert_close(reading.embeddings[real], states[:, 1:-1][real])
    assert (reading.embeddings[~real] == 0).all() and reading.contacts is None
    assert_close(output[mask], (states if kind == "EsmcModel" else expected.logits)[mask])
    alone = torch.cat([model(ids[row : row + 1, :length])[0] for row, length in enumerate(mask.sum(dim=1))])
    torch.testing.assert_close(alone, output[mask], rtol=1e-4, atol=1e-4)
    row = model([ids[row, :length] for row, length in enumerate(mask.sum(dim=1))])
    torch.testing.assert_close(row[0], output[mask], rtol=1e-4, atol=1e-4)


def test_tokens_are_those_of_its_tokenizer():
    tokenizer = transformers.EsmcTokenizer()
    alphabet = Alphabet(from_hf(make_peer("EsmcModel")).config.alphabet)
    assert len(alphabet.tokens) == 64 and alphabet.tokens[:33] == (*ESM2[:31], "|", "<mask>")
    for text in ("MKV|LLY", "ACDEFGHIKLMNPQRSTVWYXBUZO.-", "MK<mask>LJ"):
        assert alphabet.encode([text]).ids[0].tolist() == tokenizer(text)["input_ids"]


@pytest.mark.parametrize("kind", ["EsmcModel", "EsmcForMaskedLM"])
def test_from_a_directory_of_transformers_and_back_from_ours(tmp_path, kind):
    peer, ids = make_peer(kind), Alphabet().encode(SEQUENCES).ids
    peer.save_pretrained(tmp_path / "stock")
    with torch.no_grad():
        model = load_model(str(tmp_path / "stock"))
        assert_close(model(ids), peer(ids)[0])
        model.save_pretrained(tmp_path / "ours")
        assert torch.equal(load_model(str(tmp_path / "ours"))(ids), model(ids))


def test_from_the_esm_package(tmp_path):
    peer, ids = make_peer("EsmcForMaskedLM"), Alphabet().encode(SEQUENCES).ids
    path = tmp_path / "esmc_300m_2024_12_v0.pth"
    torch.save(package_state(peer), path)
    with torch.no_grad():
        assert_close(load_model(str(path))(ids), peer(ids).logits)
        assert_close(from_hf(path)(ids), peer(ids).logits)
    torch.save({key: tensor for key, tensor in package_state(peer).items() if "q_ln" not in key}, path)
    with pytest.raises(UserError, match=r"not in the checkpoint: encoder\.blocks\.0\.attention\.q_norm\.weight"):
        from_hf(path)
    torch.save({"weight": torch.zeros(3)}, path)
    with pytest.raises(UserError, match=r"takes an ESM C of the esm package, which has embed.weight"):
        from_hf(path)


def test_from_its_first_checkpoints_on_the_hub(tmp_path):
    peer, ids = make_peer("EsmcForMaskedLM"), Alphabet().encode(SEQUENCES).ids
    state = {}
    for key, tensor in package_state(peer).items():
        for name, other in FUSED.items():
            key = key.replace(name, other)
        state[key if key.startswith("lm_head") else f"esmc.{key}"] = tensor.contiguous()
    state["esmc.transformer.blocks.0.attn.layernorm_qkv._extra_state"] = torch.zeros(4, dtype=torch.uint8)
    save_file(state, tmp_path / "model.safetensors")
    settings = {"model_type": "esmc", "architectures": ["ESMCForMaskedLM"], "d_model": 128, "n_heads": 2, "n_layers": 3}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    with torch.no_grad():
        assert_close(load_model(str(tmp_path))(ids), peer(ids).logits)


def test_half_precision_is_widened_before_it_is_scaled():
    peer, ids = make_peer("EsmcForMaskedLM"), Alphabet().encode(SEQUENCES).ids
    with torch.no_grad():
        for parameter in peer.parameters():
            parameter.copy_(parameter.bfloat16())
        model = from_hf(copy.deepcopy(peer).bfloat16())
        assert_close(model(ids), peer(ids).logits)


def test_long_proteins_attend_by_patterns():
    model, sequence = from_hf(make_peer("EsmcModel")), "MKVLAWGIHDSTPNQERYFC" * 20
    dense = model.read_sequence(sequence)
    sparsify(model, "Local(10000)")
    torch.testing.assert_close(model.read_sequence(sequence).embeddings, dense.embeddings, rtol=0, atol=1e-5)
    sparsify(model, "Local(128) | Global(1)")
    near = model.read_sequence(sequence)
    assert (near.embeddings - dense.embeddings).abs().max() > 1e-3


def test_every_weight_learns():
    model = from_hf(make_peer("EsmcForMaskedLM"))
    ids, mask = Alphabet().encode(SEQUENCES)
    model(ids, mask)[mask].square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize(
    "changes, sentence",
    [
        ({"hidden_act": "gelu"}, "takes ESM C with silu and default rotary positions, not gelu"),
        (
            {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}},
            "not silu and linear ones",
        ),
        ({"vocab_size": 30}, "a model of 30 tokens, an alphabet of 33"),
        ({"mask_token_id": 31}, "<mask> is token 31 of the model; its alphabet has | there"),
    ],
)
def test_what_has_no_equal_gets_one_sentence(changes, sentence):
    with pytest.raises(UserError) as error:
        from_hf(make_peer("EsmcModel", **changes))
    assert sentence in str(error.value)


def run(command, arguments, *words, monkeypatch):
    monkeypatch.setattr("sys.argv", ["command", *map(str, words)])
    predict_command("command", arguments, command)


def test_commands(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    peer = make_peer("EsmcForMaskedLM")
    peer.save_pretrained("stock")
    (tmp_path / "one.fasta").write_text(">one\nMKVLAWGIHDSTPNQERYFC\n")
    run(predict, Predict, "stock", "one.fasta", "--out", "found", monkeypatch=monkeypatch)
    assert capsys.readouterr().out.strip() == "one: 20 residues (found/one.npz)"
    ids = Alphabet().encode(["MKVLAWGIHDSTPNQERYFC"]).ids
    with torch.no_grad(), np.load("found/one.npz") as arrays:
        assert set(arrays) == {"embeddings"}
        expected = peer.esmc(ids).last_hidden_state[0, 1:-1]
        np.testing.assert_allclose(arrays["embeddings"], expected, atol=1e-5 * expected.abs().max())
    (tmp_path / "pin.pdb").write_text(PDB)
    with pytest.raises(SystemExit) as end:
        run(evaluate, Evaluate, "stock", "pin.pdb", monkeypatch=monkeypatch)
    said = capsys.readouterr().err
    assert end.value.code == 1 and "stock predicts no contacts to compare: name an ESM-2, not an ESM C." in said


PDB = "".join(
    f"ATOM  {k:5d}  CA  ALA A{k:4d}    {3.8 * k:8.3f}{0.0:8.3f}{0.0:8.3f}  1.00  0.00           C\n"
    for k in range(1, 9)
)
