"""Equal outputs with transformers, on random weights."""

import json

import pytest
import torch
from text_peers import CASES, KINDS, SHAPES, assert_close, make_peer, outputs, padded_batch

from core import UserError
from text import TextEncoder, from_hf


def rope(theta):
    return {"rope_type": "default", "rope_theta": theta}


@pytest.mark.parametrize("family, kind", CASES)
def test_outputs_equal_transformers(family, kind):
    changes = {"num_labels": 5} if kind in ("ForSequenceClassification", "ForTokenClassification") else {}
    peer = make_peer(family, kind, **changes)
    for found, expected in outputs(family, kind, peer, from_hf(peer)):
        assert_close(found, expected)


@pytest.mark.parametrize(
    "family, kind, changes",
    [
        ("Bert", "ForMaskedLM", {"hidden_act": "gelu_new"}),
        ("Bert", "ForMaskedLM", {"tie_word_embeddings": False}),
        ("Bert", "Model", {"hidden_act": "relu", "layer_norm_eps": 1e-3}),
        ("Electra", "ForMaskedLM", {"embedding_size": 64, "tie_word_embeddings": False}),
        ("XLMRoberta", "ForMaskedLM", {"pad_token_id": 3, "type_vocab_size": 2}),
        ("DebertaV2", "ForMaskedLM", {"position_biased_input": True, "type_vocab_size": 2}),
        ("DebertaV2", "Model", {"position_buckets": 8, "max_relative_positions": 64, "layer_norm_eps": 1e-3}),
        ("DebertaV2", "ForSequenceClassification", {"pooler_hidden_act": "tanh", "hidden_act": "relu"}),
        ("NomicBert", "ForMaskedLM", {"hidden_act": "gelu", "rope_parameters": rope(500.0)}),
        ("Gte", "ForTokenClassification", {"hidden_act": "silu", "type_vocab_size": 0}),
        ("JinaEmbeddingsV3", "Model", {"hidden_act": "relu", "rope_parameters": rope(100.0)}),
        ("EuroBert", "ForSequenceClassification", {"classifier_pooling": "bos", "num_labels": 3}),
        ("EuroBert", "ForSequenceClassification", {"classifier_pooling": "mean", "num_key_value_heads": 1}),
        ("EuroBert", "ForMaskedLM", {"mlp_bias": True, "attention_bias": True, "tie_word_embeddings": True}),
        ("ModernBert", "ForMaskedLM", {"decoder_bias": False}),
        ("ModernBert", "ForMaskedLM", {"decoder_bias": False, "tie_word_embeddings": False}),
        ("Albert", "Model", {"num_hidden_groups": 1, "embedding_size": 64, "hidden_act": "gelu"}),
        ("DistilBert", "ForMaskedLM", {"activation": "relu"}),
        ("ModernBert", "ForSequenceClassification", {"classifier_pooling": "mean", "num_labels": 3}),
        ("ModernBert", "ForMaskedLM", {"local_attention": 32, "norm_bias": True, "classifier_bias": True}),
        ("ModernBert", "Model", {"mlp_bias": True, "attention_bias": True, "hidden_activation": "silu"}),
    ],
)
def test_variants_equal_transformers(family, kind, changes):
    peer = make_peer(family, kind, **changes)
    for found, expected in outputs(family, kind, peer, from_hf(peer)):
        assert_close(found, expected)


@pytest.mark.parametrize("family", SHAPES)
def test_intermediate_layers_equal_transformers(family):
    """transformers norms the last one, where there is a norm after it."""
    peer = make_peer(family, "Model")
    ids, mask = padded_batch(family, peer)
    ours = from_hf(peer)
    with torch.no_grad():
        expected = peer(ids, attention_mask=mask.long(), output_hidden_states=True).hidden_states[1:]
        found = ours.intermediate(ids, mask, layers=range(len(expected) - 1))
        found += ours.intermediate(ids, mask, layers=(-1,), norm=True)
    for mine, theirs in zip(found, expected, strict=True):
        assert_close(mine.x[mask], theirs[mask])


def test_segments_equal_transformers():
    peer = make_peer("Bert", "Model")
    ids, mask = padded_batch("Bert", peer)
    segments = (torch.arange(ids.shape[1]) > 9).long().expand_as(ids)
    with torch.no_grad():
        expected = peer(ids, attention_mask=mask.long(), token_type_ids=segments)
        assert_close(from_hf(peer).features(ids, mask, segments), expected.pooler_output)


@pytest.mark.parametrize("family", SHAPES)
@pytest.mark.parametrize("kind", ["ForSequenceClassification", "ForMaskedLM"])
def test_a_text_alone_or_in_any_batch(family, kind):
    peer = make_peer(family, kind)
    ours = from_hf(peer)
    ids, mask = padded_batch(family, peer)
    with torch.no_grad():
        together, vectors = ours(ids, mask), ours.sentence_vectors(ids, mask)
        for row, length in enumerate(mask.sum(dim=1).tolist()):
            alone = ours(ids[row : row + 1, :length])
            beside = together[row : row + 1, :length] if kind == "ForMaskedLM" else together[row : row + 1]
            assert (alone - beside).abs().max() <= 1e-5 * together.abs().max()
            vector = ours.sentence_vectors(ids[row : row + 1, :length])[0]
            assert (vector - vectors[row]).abs().max() <= 1e-5
            assert abs(vector.norm() - 1) <= 1e-5


@pytest.mark.parametrize("family", SHAPES)
def test_a_list_of_texts_is_the_padded_batch(family):
    peer = make_peer(family, "ForSequenceClassification")
    ours = from_hf(peer)
    ids, mask = padded_batch(family, peer)
    with torch.no_grad():
        assert_close(ours([row[real] for row, real in zip(ids, mask, strict=True)]), ours(ids, mask))


def test_a_discriminator_of_electra_is_the_base_model():
    peer = make_peer("Electra", "ForPreTraining")
    ours = from_hf(peer)
    ids, mask = padded_batch("Electra", peer)
    with torch.no_grad():
        expected = peer.electra(ids, attention_mask=mask.long()).last_hidden_state
        assert_close(ours.encode(ids, mask).x[mask], expected[mask])
    assert ours.config.head == "none"


@pytest.mark.parametrize("family, kind", CASES)
def test_a_config_that_names_no_class(family, kind, tmp_path):
    changes = {"num_labels": 5} if kind in ("ForSequenceClassification", "ForTokenClassification") else {}
    peer = make_peer(family, kind, **changes)
    peer.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "architectures": None}))
    if family == "ModernBert" and kind not in ("Model", "ForMaskedLM"):
        with pytest.raises(UserError, match=r"may be of ModernBertForSequenceClassification or .*: name one"):
            from_hf(tmp_path)
        return
    for found, expected in outputs(family, kind, peer, from_hf(tmp_path)):
        assert_close(found, expected)


def nomics_own(changes):
    """What nomic-ai's own code writes into config.json, for the peer's shape."""
    shape = {"n_embd": 64, "n_layer": 3, "n_head": 4, "n_inner": 96, "n_positions": 40, "vocab_size": 90}
    rotary = {"rotary_emb_base": 1000, "rotary_emb_fraction": 1.0, "rotary_emb_interleaved": False}
    biases = {"qkv_proj_bias": False, "mlp_fc1_bias": False, "mlp_fc2_bias": False}
    norms = {"prenorm": False, "use_rms_norm": False, "layer_norm_epsilon": 1e-12, "activation_function": "swiglu"}
    kind = {"model_type": "nomic_bert", "architectures": ["NomicBertModel"], "type_vocab_size": 2}
    return {**kind, **shape, **rotary, **biases, **norms, **changes}


def test_the_config_of_nomics_own_code(tmp_path):
    peer = make_peer("NomicBert", "Model")
    peer.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(nomics_own({})))
    for found, expected in outputs("NomicBert", "Model", peer, from_hf(tmp_path)):
        assert_close(found, expected)
    (tmp_path / "config.json").write_text(json.dumps(nomics_own({"rotary_emb_base": 10})))
    assert from_hf(tmp_path).config.encoder.rotary_theta == 10
    for changes in ({"num_experts": 8}, {"prenorm": True}, {"activation_function": "gelu"}):
        (tmp_path / "config.json").write_text(json.dumps(nomics_own(changes)))
        with pytest.raises(UserError, match=f"does not support a NomicBERT with {next(iter(changes))}="):
            from_hf(tmp_path)


@pytest.mark.parametrize("family", ["Roberta", "ModernBert"])
def test_a_local_directory(family, tmp_path):
    peer = make_peer(family, "ForSequenceClassification", num_labels=3, id2label={0: "no", 1: "maybe", 2: "yes"})
    peer.save_pretrained(tmp_path / "peer")
    ours = from_hf(tmp_path / "peer")
    assert ours.config.labels == ("no", "maybe", "yes")
    for found, expected in outputs(family, "ForSequenceClassification", peer, ours):
        assert_close(found, expected)
    ours.save_pretrained(tmp_path / "ours")
    again = TextEncoder.from_pretrained(tmp_path / "ours").eval()
    assert again.config == ours.config
    ids, mask = padded_batch(family, peer)
    torch.testing.assert_close(again(ids, mask), ours(ids, mask), rtol=0, atol=0)


@pytest.mark.parametrize("family, kind", [case for case in CASES if case[1] in KINDS[2:4]])
def test_heads_of_tokens_from_a_directory_and_in_a_row(family, kind, tmp_path):
    changes = (
        {"num_labels": 3, "id2label": {0: "O", 1: "B-PER", 2: "I-PER"}} if kind == "ForTokenClassification" else {}
    )
    peer = make_peer(family, kind, **changes)
    peer.save_pretrained(tmp_path)
    ours = from_hf(tmp_path)
    assert ours.config.labels == (("O", "B-PER", "I-PER") if changes else ())
    for found, expected in outputs(family, kind, peer, ours):
        assert_close(found, expected)
    ids, mask = padded_batch(family, peer)
    with torch.no_grad():
        row = ours([numbers[real] for numbers, real in zip(ids, mask, strict=True)])
        assert_close(row[0], ours(ids, mask)[mask])


@pytest.mark.parametrize("family, kind", [case for case in CASES if case[1] in KINDS[2:4]])
def test_a_head_of_tokens_that_is_new(family, kind):
    head = {"ForTokenClassification": "tags", "ForQuestionAnswering": "spans"}[kind]
    peer = make_peer(family, "ForMaskedLM")
    with pytest.warns(UserWarning, match="for masked tokens, not .*: the head is initialised at random"):
        ours = from_hf(peer, head=head, classes=4)
    ids, mask = padded_batch(family, peer)
    assert ours(ids, mask).shape == (*ids.shape, 4 if head == "tags" else 2) and ours.config.head == head
    torch.testing.assert_close(ours.encode(ids, mask).x, from_hf(peer).encode(ids, mask).x)


def test_other_heads_start_afresh_and_say_so():
    peer = make_peer("Bert", "ForMaskedLM")
    same = from_hf(peer)
    with pytest.warns(UserWarning, match="for masked tokens, not 7 classes: the head is initialised at random"):
        ours = from_hf(peer, head="classes", classes=7, max_length=20)
    ids, mask = padded_batch("Bert", peer)
    ids, mask = ids[:, :20], mask[:, :20]
    assert ours(ids, mask).shape == (3, 7) and ours.config.max_length == 20
    torch.testing.assert_close(ours.encode(ids, mask).x, same.encode(ids, mask).x)


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: make_peer("Bert", "ForMultipleChoice"), "not BertForMultipleChoice"),
        (lambda: make_peer("Bert", "ForQuestionAnswering", num_labels=3), "does not support answers by 3 outputs"),
        (lambda: make_peer("Albert", "Model", inner_group_num=2), "does not support groups of 2 layers"),
        (lambda: make_peer("Bert", "Model", hidden_act="silu"), "does not support activation 'silu'"),
        (
            lambda: make_peer("EuroBert", "Model", rope_parameters={**rope(1e4), "rope_type": "linear", "factor": 2.0}),
            "does not support rotary positions of type 'linear'",
        ),
        (
            lambda: make_peer("DebertaV2", "Model", conv_kernel_size=3),
            "does not support a DeBERTa with conv_kernel_size=3",
        ),
        (
            lambda: make_peer("DebertaV2", "Model", share_att_key=False),
            "does not support a DeBERTa with share_att_key=False",
        ),
        (lambda: make_peer("DebertaV2", "Model", pos_att_type=["c2p"]), r"a DeBERTa with pos_att_type=\['c2p'\]"),
        (lambda: make_peer("MPNet", "Model", relative_attention_num_buckets=16), "does not support 16 buckets"),
        (lambda: torch.nn.Linear(2, 2), "not Linear"),
    ],
)
def test_what_has_no_equal_here_is_named(make, words):
    with pytest.raises(ValueError, match=words):
        from_hf(make())
