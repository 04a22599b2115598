"""Equal outputs with the base models of transformers, on random weights, from the waveform on."""

import re

import pytest
import torch
from audio_peers import ast_extractor, clips, difference, inputs, make_ast, padded
from safetensors.torch import load_file, save_file

from audio import from_hf


def outputs(ours):
    """`features` of clips in a padded batch, as a list and alone."""
    sounds = clips()
    with torch.no_grad():
        yield ours.features(*padded(sounds))
        yield ours.features(sounds)
        yield torch.cat([ours.features(sound[None]) for sound in sounds])


# --- AST --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("changes", [{}, {"num_mel_bins": 64, "time_stride": 7, "qkv_bias": False}])
def test_the_base_model_of_ast(changes, tmp_path):
    peer = make_ast("Model", **changes)
    extractor = ast_extractor(peer)
    peer.save_pretrained(tmp_path)
    extractor.save_pretrained(tmp_path)
    with torch.no_grad():
        expected = peer(inputs(extractor, clips()))
    for ours in (from_hf(peer, extractor=extractor), from_hf(tmp_path)):
        assert ours.config.classes == 0
        assert all(difference(found, expected.pooler_output) <= 1e-5 for found in outputs(ours))
        with torch.no_grad():
            assert difference(ours.encode(*padded(clips())).x, expected.last_hidden_state) <= 1e-5


def test_padding_of_the_base_model_of_ast_is_masked_on_request():
    ours = from_hf(make_ast("Model"), mask_padding=True)
    together, ragged, alone = outputs(ours)
    assert difference(together, alone) <= 1e-5 and difference(ragged, alone) <= 1e-5
    assert difference(next(outputs(from_hf(make_ast("Model")))), alone) > 1e-2


def test_checkpoints_of_ast_have_the_names_of_transformers_to_5_9(tmp_path):
    peer = make_ast()
    peer.save_pretrained(tmp_path)
    extractor = ast_extractor(peer)
    extractor.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    weights = load_file(file)
    names = {
        r"\.layers\.": ".encoder.layer.",
        r"attention\.q_proj": "attention.attention.query",
        r"attention\.k_proj": "attention.attention.key",
        r"attention\.v_proj": "attention.attention.value",
        r"attention\.o_proj": "attention.output.dense",
        r"mlp\.fc1": "intermediate.dense",
        r"mlp\.fc2": "output.dense",
    }
    old = {}
    for key, tensor in weights.items():
        for new, name in names.items():
            key = re.sub(new, name, key)
        old[key] = tensor
    assert "audio_spectrogram_transformer.encoder.layer.0.attention.attention.query.weight" in old
    save_file(old, file, metadata={"format": "pt"})
    expected, found = from_hf(peer, extractor=extractor), from_hf(tmp_path)
    assert torch.equal(found(clips()), expected(clips()))
