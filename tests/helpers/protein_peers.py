"""Protein language models of transformers with random weights."""

from collections.abc import Callable
from functools import partial

import torch
import transformers
from torch import nn

ESM2 = {
    "vocab_size": 33,
    "pad_token_id": 1,
    "mask_token_id": 32,
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "layer_norm_eps": 1e-5,
    "position_embedding_type": "rotary",
    "token_dropout": True,
    "emb_layer_norm_before": False,
}
ESMC = {
    "hidden_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 96,
}
SEQUENCES = ["MKVLAWGIHDSTPNQERYFC" * 3, "MK<mask>LLYW<mask>X", "GIVEQCCTSICSLYQLENYCN", "M"]


def make_peer(kind="EsmForMaskedLM", **changes):
    torch.manual_seed(0)
    config_class, small = (transformers.EsmcConfig, ESMC) if kind.startswith("Esmc") else (transformers.EsmConfig, ESM2)
    config = config_class(**{**small, **changes})
    config._attn_implementation = "eager"  # contacts need its weights
    peer = getattr(transformers, kind)(config).eval()
    with torch.no_grad():
        for parameter in peer.parameters():  # zeros and ones would hide mistakes
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return peer


PEERS: dict[str, Callable[[], nn.Module]] = {"ESM-2": make_peer, "ESM C": partial(make_peer, "EsmcForMaskedLM")}


def assert_close(found, expected, tolerance=1e-5):
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= tolerance * expected.abs().max()
