"""Models of transformers with random weights, and what they say beside what ours say."""

from functools import partial

import torch
import transformers

BERT = {
    "vocab_size": 90,
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "max_position_embeddings": 40,
}
ROBERTA = {**BERT, "type_vocab_size": 1, "layer_norm_eps": 1e-5, "pad_token_id": 1}
SHAPES = {  # by the name of the class
    "Bert": BERT,
    "Roberta": ROBERTA,
    "XLMRoberta": ROBERTA,
    "Camembert": ROBERTA,
    "XLMRobertaXL": ROBERTA,
    "Electra": {**BERT, "embedding_size": 24},
    "MPNet": {**BERT, "max_position_embeddings": 260},
    "DebertaV2": {
        **BERT,
        "max_position_embeddings": 400,
        "relative_attention": True,
        "position_buckets": 32,
        "share_att_key": True,
        "norm_rel_ebd": "layer_norm",
        "pos_att_type": ["p2c", "c2p"],
        "position_biased_input": False,
    },
    "NomicBert": BERT,
    "Gte": {**BERT, "pad_token_id": 1},
    "JinaEmbeddingsV3": ROBERTA,
    "EuroBert": {**BERT, "num_key_value_heads": 2, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2},
    "DistilBert": {
        "vocab_size": 90,
        "dim": 64,
        "n_layers": 3,
        "n_heads": 4,
        "hidden_dim": 96,
        "max_position_embeddings": 40,
    },
    "Albert": {**BERT, "num_hidden_layers": 4, "num_hidden_groups": 2, "embedding_size": 24},
    "ModernBert": {
        **BERT,
        "num_hidden_layers": 4,
        "max_position_embeddings": 400,
        **{f"{name}_token_id": number for number, name in enumerate(("pad", "bos", "eos", "cls", "sep"))},
    },
}
LENGTHS = {
    "ModernBert": (300, 150, 1),  # the windows reach 64 tokens to either side
    "MPNet": (250, 150, 1),  # the last bucket begins at a distance of 128
    "DebertaV2": (390, 150, 1),  # the last bucket begins at a distance of about 330
}
CLASSIC = ("Bert", "Roberta", "DistilBert", "Albert", "ModernBert")
NAMES = {  # as a user says them
    "Bert": "BERT",
    "Roberta": "RoBERTa",
    "XLMRoberta": "XLM-RoBERTa",
    "Camembert": "CamemBERT",
    "XLMRobertaXL": "XLM-RoBERTa-XL",
    "Electra": "ELECTRA",
    "DebertaV2": "DeBERTa-v2 and v3",
    "NomicBert": "NomicBERT",
    "Gte": "GTE",
    "JinaEmbeddingsV3": "Jina embeddings v3",
    "EuroBert": "EuroBERT",
    "DistilBert": "DistilBERT",
    "Albert": "ALBERT",
    "ModernBert": "ModernBERT",
}


def make_peer(family, kind, **changes):
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**{**SHAPES[family], **changes})
    config._attn_implementation = "eager" if family in ("MPNet", "DebertaV2") else "sdpa"
    peer = getattr(transformers, family + kind)(config).eval()
    with torch.no_grad():
        for parameter in peer.parameters():  # zeros and ones would hide mistakes
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return peer


KINDS = ("Model", "ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering", "ForMaskedLM")
CASES = [(family, kind) for family in SHAPES for kind in KINDS if hasattr(transformers, family + kind)]
PEERS = {NAMES.get(family, family): partial(make_peer, family, "ForSequenceClassification") for family in SHAPES}


def padded_batch(family, peer):
    lengths = torch.tensor(LENGTHS.get(family, (31, 17, 1)))
    mask = torch.arange(lengths.max()) < lengths[:, None]
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(5, 90, mask.shape, generator=generator)
    return ids.where(mask, peer.config.pad_token_id), mask


def assert_close(found, expected):
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


def outputs(family, kind, peer, ours):
    """(found, expected) pairs: the hidden states of real tokens, and what the head says."""
    ids, mask = padded_batch(family, peer)
    with torch.no_grad():
        expected = peer(ids, attention_mask=mask.long(), output_hidden_states=True)
        states = expected.last_hidden_state if kind == "Model" else expected.hidden_states[-1]
        yield ours.encode(ids, mask).x[mask], states[mask]
        if kind in ("ForMaskedLM", "ForTokenClassification"):
            yield ours(ids, mask)[mask], expected.logits[mask]
            yield ours(ids, mask, where=mask), expected.logits[mask]
        elif kind == "ForQuestionAnswering":
            yield ours(ids, mask)[mask], torch.stack([expected.start_logits, expected.end_logits], dim=-1)[mask]
        elif kind == "ForSequenceClassification":
            yield ours(ids, mask), expected.logits
        elif "pooler_output" in expected:
            yield ours.features(ids, mask), expected.pooler_output
