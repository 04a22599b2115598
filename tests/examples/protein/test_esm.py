"""ESM-2: equal outputs with transformers, on random weights."""

import pytest
import torch
import transformers
from protein_peers import SEQUENCES, assert_close, make_peer

from core import EncoderConfig, UserError, WeightsError, from_dict, record_attention, sparsify, to_dict
from core.attention.packing import Packing, Place
from examples.protein.alphabet import ESM2, Alphabet
from examples.protein.esm import ESM, ESMConfig
from examples.protein.pretrained import from_hf, load_model


@pytest.mark.parametrize("frequencies", [(), (1.0, 0.3, 0.1, 0.01)])
@pytest.mark.parametrize("token_dropout", [False, True])
def test_sequences_in_a_row_equal_sequences_alone(token_dropout, frequencies):
    encoder = EncoderConfig(dim=32, depth=2, heads=4, rotary="1d")
    model = ESM(ESMConfig(token_dropout=token_dropout, frequencies=frequencies, encoder=encoder)).double()
    texts = [Alphabet().encode([sequence])[0][0] for sequence in SEQUENCES]
    packing = Packing.of(Place(len(ids)) for ids in texts)
    row = torch.cat(texts)[None]
    gradients = []
    for compute in (lambda: torch.cat([model(ids[None]) for ids in texts], dim=1), lambda: model(row, packing)):
        out = compute()
        weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(0), dtype=out.dtype)
        used = [parameter for name, parameter in model.named_parameters() if "contact" not in name]
        gradients.append([out, *torch.autograd.grad((out * weights).sum(), used)])
    for found, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    assert torch.equal(model(texts), model(row, packing))
    with pytest.raises(UserError, match=r"4 packed sequences of .* lie in one row"):
        model(row[:, 1:], packing)
    with pytest.raises(UserError, match="needs at least one of them"):
        model([])


@pytest.mark.parametrize(
    "kind, changes",
    [
        ("EsmModel", {}),
        ("EsmForMaskedLM", {}),
        ("EsmForMaskedLM", {"token_dropout": False}),
        ("EsmForMaskedLM", {"tie_word_embeddings": False, "emb_layer_norm_before": True, "rope_theta": 500.0}),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equal_outputs(kind, changes, dtype):
    peer = make_peer(kind, **changes).to(dtype)
    model = from_hf(peer).to(dtype)
    ids, mask = Alphabet().encode(SEQUENCES)
    real = mask[:, 2:]
    with torch.no_grad():
        expected = peer(ids, attention_mask=mask.long(), output_hidden_states=True)
        contacts = peer.predict_contacts(ids, mask.long())
        encoded, reading = model.encode(ids, mask), model.read(ids, mask)
        output = model(ids, mask)
    assert_close(encoded.x[mask], expected.hidden_states[-1][mask])
    assert_close(reading.embeddings[real], expected.hidden_states[-1][:, 1:-1][real])
    pairs = real[:, :, None] & real[:, None]
    assert_close(reading.contacts[pairs], contacts[pairs])
    assert contacts[pairs].std() > 1e-3  # the contacts differ
    assert (reading.contacts[~pairs] == 0).all() and torch.equal(reading.contacts, reading.contacts.mT)
    states = expected.last_hidden_state if kind == "EsmModel" else expected.logits
    assert_close(output[mask], states[mask])


def test_a_protein_alone_or_in_any_batch():
    model = from_hf(make_peer())
    with torch.no_grad():
        together = model.read(*Alphabet().encode(SEQUENCES))
    for row, sequence in enumerate(SEQUENCES):
        ids, mask = Alphabet().encode([sequence])
        n = ids.shape[1] - 2
        with torch.no_grad():
            for alone in (model.read(ids), model.read(ids, mask)):
                torch.testing.assert_close(alone.embeddings[0], together.embeddings[row, :n], rtol=0, atol=1e-5)
                torch.testing.assert_close(alone.contacts[0], together.contacts[row, :n, :n], rtol=0, atol=1e-5)
        found = model.read_sequence(sequence)
        torch.testing.assert_close(found.contacts, together.contacts[row, :n, :n], rtol=0, atol=1e-5)


def test_what_stands_in_padding_is_never_seen():
    model = from_hf(make_peer())
    ids, mask = Alphabet().encode(SEQUENCES)
    with torch.no_grad():
        found = model.read(ids, mask)
        for token in (4, Alphabet().mask, 2):
            other = model.read(ids.where(mask, token), mask)
            assert torch.equal(other.embeddings, found.embeddings) and torch.equal(other.contacts, found.contacts)


def test_rotary_frequencies_are_those_of_the_checkpoint(tmp_path):
    """Some checkpoints have them in half precision, as they were in training."""
    peer = make_peer()
    assert from_hf(peer).config.frequencies == ()
    with torch.no_grad():
        table = peer.esm.rotary_embeddings.inv_freq
        table.copy_(table.half())
    ids, mask = Alphabet().encode(["MKVLAWGIHDSTPNQERYFC" * 40])
    model = from_hf(peer)
    assert model.config.frequencies == tuple(table.tolist())
    with torch.no_grad():
        expected = peer(ids, attention_mask=mask.long()).logits
        assert_close(model(ids, mask), expected)
        model.encoder.frequencies = ()
        assert (model(ids, mask) - expected).abs().max() > 1e-3 * expected.abs().max()
    peer.save_pretrained(tmp_path)
    assert load_model(str(tmp_path)).config.frequencies == from_hf(peer).config.frequencies


def test_long_proteins_attend_by_patterns():
    model, sequence = from_hf(make_peer()), "MKVLAWGIHDSTPNQERYFC" * 20
    dense = model.read_sequence(sequence)
    sparsify(model, "Local(10000)")
    everywhere = model.read_sequence(sequence)
    torch.testing.assert_close(everywhere.embeddings, dense.embeddings, rtol=0, atol=1e-5)
    torch.testing.assert_close(everywhere.contacts, dense.contacts, rtol=0, atol=1e-5)
    sparsify(model, "Local(128) | Global(1)")
    ids, mask = Alphabet().encode([sequence])
    with record_attention() as calls, torch.no_grad():
        near = model.read(ids, mask)
    assert {call.backend for call in calls} <= {"native", "blockwise"}
    assert near.contacts.isfinite().all() and (near.embeddings[0] - dense.embeddings).abs().max() > 1e-3


def test_it_comes_back_from_disk(tmp_path):
    model, ids = from_hf(make_peer()), Alphabet().encode(SEQUENCES).ids
    sparsify(model, "Local(64)")
    model.save_pretrained(tmp_path)
    for again in (ESM.from_pretrained(tmp_path).eval(), load_model(str(tmp_path))):
        assert again.config == model.config == from_dict(ESMConfig, to_dict(model.config))
        with torch.no_grad():
            torch.testing.assert_close(again(ids), model(ids), rtol=0, atol=0)
            assert torch.equal(again.read(ids).contacts, model.read(ids).contacts)


def test_every_weight_learns():
    model = from_hf(make_peer(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0))
    ids, mask = Alphabet().encode(SEQUENCES)
    (model(ids, mask)[mask].square().sum() + model.read(ids, mask).contacts.sum()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("kind", ["EsmModel", "EsmForMaskedLM"])
def test_from_a_directory_of_transformers(tmp_path, kind):
    peer, ids = make_peer(kind), Alphabet().encode(SEQUENCES).ids
    peer.save_pretrained(tmp_path)
    with torch.no_grad():
        assert_close(load_model(str(tmp_path))(ids), from_hf(peer)(ids), 1e-6)
    swapped = (*ESM2[:4], "A", "L", *ESM2[6:])
    (tmp_path / "vocab.txt").write_text("\n".join(swapped))
    assert from_hf(tmp_path).config.alphabet == swapped


@pytest.mark.parametrize(
    "kind, changes, sentence",
    [
        (
            "EsmModel",
            {"position_embedding_type": "absolute"},
            "takes ESM-2 (rotary positions), not ESM-1b (absolute ones)",
        ),
        (
            "EsmForTokenClassification",
            {},
            "The model is EsmForTokenClassification, not an ESM-2 or ESM C (EsmModel, ",
        ),
        ("EsmModel", {"is_decoder": True}, "takes an encoder, not a decoder"),
        ("EsmModel", {"vocab_size": 40}, "a model of 40 tokens, an alphabet of 33"),
        ("EsmModel", {"mask_token_id": 31}, "<mask> is token 31 of the model; its alphabet has <null_1> there"),
    ],
)
def test_what_has_no_equal_gets_one_sentence(kind, changes, sentence):
    with pytest.raises(UserError) as error:
        from_hf(make_peer(kind, **changes))
    assert sentence in str(error.value)


def test_every_key_is_accounted_for():
    peer = make_peer()
    peer.esm.register_buffer("more", torch.zeros(1))
    with pytest.raises(WeightsError, match="no rule for: more"):
        from_hf(peer)


def test_models_that_cannot_be_loaded_get_one_sentence(tmp_path):
    def message_of(source):
        with pytest.raises(UserError) as error:
            load_model(str(source))
        assert "\n" not in str(error.value)
        return str(error.value)

    assert "There is no directory runs/no; a model of the hub is written hf-hub:NAME." in message_of("runs/no")
    (tmp_path / "empty").mkdir()
    assert "holds no trained model" in message_of(tmp_path / "empty")
    peer = tmp_path / "peer"
    make_peer().save_pretrained(peer)
    weights = peer / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    assert "cannot be read" in message_of(peer)
    model = make_peer("EsmModel")
    state = {key: tensor for key, tensor in model.state_dict().items() if not key.startswith("contact_head")}
    model.save_pretrained(peer, state_dict=state)
    assert "not in the checkpoint: contact_head.regression.weight" in message_of(peer)
    model.save_pretrained(peer, state_dict={**model.state_dict(), "encoder.gate": torch.zeros(1)})
    assert "no rule for: encoder.gate" in message_of(peer)
    make_peer("EsmForTokenClassification").save_pretrained(peer)
    assert "not an ESM-2 or ESM C" in message_of(peer)
    text = tmp_path / "text"
    transformers.BertModel(
        transformers.BertConfig(hidden_size=16, num_attention_heads=2, num_hidden_layers=1)
    ).save_pretrained(text)
    assert "not an ESM-2 or ESM C" in message_of(text)


def test_what_wrapped_a_checkpoint_leaves_its_weights_alone(tmp_path):
    peer, ids = make_peer(), torch.randint(4, 24, (2, 9))
    peer.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    state = {f"module.{key}": tensor for key, tensor in peer.state_dict().items()}
    torch.save({"model": state, "epoch": 3}, tmp_path / "pytorch_model.bin")
    with torch.no_grad():
        torch.testing.assert_close(from_hf(tmp_path)(ids), peer(ids).logits, rtol=1e-4, atol=1e-4)
