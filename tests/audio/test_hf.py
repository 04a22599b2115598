"""Equal outputs with the base models of transformers, on random weights, from the waveform on."""

import re

import pytest
import torch
from audio_peers import (
    PEERS,
    SECONDS,
    ast_extractor,
    clips,
    difference,
    inputs,
    make_ast,
    make_whisper,
    padded,
    whisper_extractor,
)
from safetensors.torch import load_file, save_file
from transformers import Wav2Vec2FeatureExtractor, WhisperFeatureExtractor

from audio import AST, ASTConfig, FeatureConfig, from_hf
from audio.export import FromFeatures
from audio.whisper import WhisperFilterbank
from core import EncoderConfig, UserError


def outputs(ours, seconds=SECONDS):
    """What it says of clips in a padded batch, as a list and alone."""
    sounds = clips(seconds)
    with torch.no_grad():
        yield ours(*padded(sounds))
        yield ours(sounds)
        yield torch.cat([ours(sound[None]) for sound in sounds])


@pytest.mark.parametrize("name", PEERS)
def test_intermediate_layers(name):
    """But for the last one, after which some models norm."""
    peer, makers = PEERS[name](), {"AST": ast_extractor, "Whisper": whisper_extractor}
    peer = peer.base_model.encoder if name == "Whisper" else peer.base_model
    extractor = makers.get(name, lambda peer: Wav2Vec2FeatureExtractor())(peer)
    sounds = clips((1.3,))
    with torch.no_grad():
        states = peer(inputs(extractor, sounds), output_hidden_states=True).hidden_states[1:-1]
        found = from_hf(peer, extractor=extractor).intermediate(sounds, layers=range(len(states)))
    assert len(states) == 2
    for mine, expected in zip(found, states, strict=True):
        assert difference(mine.x, expected) <= 1e-5


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


# --- Whisper's encoder ------------------------------------------------------------------------------------------------

WITH_THE_LONGEST = (1.3, 3.0, 0.4, 2.995, 0.0001)
"""Seconds of clips; a spectrogram is mirrored at the end of the second and the fourth."""


@pytest.mark.parametrize("mels", [80, 128])
def test_features_are_those_of_the_stock_extractor_at_full_size(mels):
    extractor = WhisperFeatureExtractor(mels)
    config = FeatureConfig(kind="whisper", f_min=0.0, f_max=8000.0, mean=-4.0, std=2.0)
    sounds = clips((1.3, 30.0, 29.99, 0.003, 12.34567))
    sounds.append(torch.zeros(5000))
    sounds[0][5000:] = 0.0
    expected = inputs(extractor, sounds)
    for whole in (True, False):
        bank = WhisperFilterbank(config, 16_000, mels, 3000, whole)
        for number, sound in enumerate(sounds):
            found, counts = bank(*padded([sound]))
            assert counts == -(-len(sound) // 160) and found.shape[2] == (3000 if whole else min(counts + 2, 3000))
            assert (bank.normalise(found)[0] - expected[number, :, : found.shape[2]]).abs().max() <= 1e-5


@pytest.mark.parametrize("kind", ["Model", "Encoder", "ForConditionalGeneration", "ForAudioClassification"])
@pytest.mark.parametrize("seconds", [3, 2])
def test_whisper(kind, seconds, tmp_path):
    peer = make_whisper(kind, max_source_positions=50 * seconds, activation_function="gelu" if seconds == 3 else "relu")
    extractor = whisper_extractor(peer)
    peer.save_pretrained(tmp_path)
    extractor.save_pretrained(tmp_path)
    sounds = clips(WITH_THE_LONGEST) if seconds == 3 else clips()
    features = inputs(extractor, sounds)
    classifies = kind == "ForAudioClassification"
    with torch.no_grad():
        whole = peer.model if kind == "ForConditionalGeneration" else peer
        states = (peer if kind == "Encoder" else whole.encoder)(features).last_hidden_state
        expected = peer(features).logits if classifies else states.mean(dim=1)
    for ours in (from_hf(peer, extractor=extractor), from_hf(tmp_path)):
        assert ours.config.classes == (5 if classifies else 0)
        found = outputs(ours, WITH_THE_LONGEST if seconds == 3 else SECONDS)
        assert all(difference(logits, expected) <= 1e-5 for logits in found)
        with torch.no_grad():
            assert difference(ours.encode(*padded(sounds)).x, states) <= 1e-5


def test_padding_of_whisper_is_masked_on_request():
    peer = make_whisper("ForAudioClassification")
    extractor = whisper_extractor(peer)
    stock, ours = (from_hf(peer, extractor=extractor, mask_padding=mask) for mask in (False, True))
    together, ragged, alone = outputs(ours, WITH_THE_LONGEST)
    assert difference(together, alone) <= 1e-5 and difference(ragged, alone) <= 1e-5
    first, *_ = outputs(stock, WITH_THE_LONGEST)
    assert difference(alone, first) > 1e-2
    assert difference(alone[1::2], first[1::2]) <= 1e-5  # clips without padding
    sounds = clips(WITH_THE_LONGEST)
    embedded, whole = ours.tokens(*padded(sounds)), stock.tokens(*padded(sounds))
    assert embedded.mask.sum(dim=1).tolist() == [-(-len(sound) // 320) for sound in sounds]
    assert difference(embedded.x[embedded.mask], whole.x[embedded.mask]) <= 1e-6  # what is not masked is as before
    assert [ours.config.count_tokens(len(sound)) for sound in sounds] == embedded.mask.sum(dim=1).tolist()


def test_whisper_is_exported_from_its_features_on():
    peer = make_whisper("ForAudioClassification")
    ours = from_hf(peer, extractor=whisper_extractor(peer))
    program = FromFeatures(ours)
    features, frames = program.example(2, ours.embed.grid[1]).values()
    assert features.shape == (2, 40, 300)
    with torch.no_grad():
        found = torch.export.export(program, (features, frames)).module()(features, frames)
        assert difference(found, peer(features).logits) <= 1e-5


def test_a_whisper_of_fewer_frames_has_the_first_positions(tmp_path):
    peer = make_whisper("ForAudioClassification")
    ours = from_hf(peer, extractor=whisper_extractor(peer), max_frames=200)
    peer.encoder.embed_positions = torch.nn.Embedding.from_pretrained(peer.encoder.embed_positions.weight[:100])
    peer.config.max_source_positions = 100
    with torch.no_grad():
        expected = peer(inputs(whisper_extractor(peer), clips())).logits
    ours.save_pretrained(tmp_path)
    again = AST.from_pretrained(tmp_path)
    assert all(difference(logits, expected) <= 1e-5 for model in (ours, again) for logits in outputs(model))
    with pytest.raises(UserError, match=r"A clip of 2.01 s .* is longer than the 2.00 s .* that the model takes"):
        ours(torch.zeros(1, 32_100))


def test_what_has_no_equal_in_whisper_is_named():
    peer = make_whisper("ForAudioClassification")
    extractor = whisper_extractor(peer)
    with pytest.raises(UserError, match="returns 80 mel bins, but the model takes 40"):
        from_hf(peer)
    with pytest.raises(UserError, match="returns 3000 frames, but the model takes 300"):
        from_hf(peer, extractor=WhisperFeatureExtractor(40))
    with pytest.raises(UserError, match="does not support dither"):
        from_hf(peer, extractor=whisper_extractor(peer, dither=0.1))
    with pytest.raises(UserError, match="leave out n_mels and stride"):
        from_hf(peer, extractor=extractor, n_mels=64)
    with pytest.raises(UserError, match="400 tokens, but there are learned positions for only 150"):
        from_hf(peer, extractor=extractor, max_frames=800)
    with pytest.raises(UserError, match="Masked autoencoding needs patches"):
        from_hf(peer, extractor=extractor).patches(clips())
    weighted = make_whisper("ForAudioClassification", use_weighted_layer_sum=True)
    with pytest.raises(UserError, match=r"a weighted sum of layers \(use_weighted_layer_sum\)"):
        from_hf(weighted, extractor=extractor)
    with pytest.raises(UserError, match="not WhisperForCausalLM"):
        from_hf(make_whisper("ForCausalLM"))


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"embedding": "convolutions"}, "embedding must be convolutions where features.kind is whisper"),
        ({"features": FeatureConfig(kind="whisper")}, "embedding must be convolutions where features.kind is whisper"),
        (
            {"features": FeatureConfig(kind="whisper"), "embedding": "convolutions"},
            "embedding of convolutions needs class_token=False, registers=0, stem=()",
        ),
        ({"class_token": False, "registers": 0}, "pool must be mean, max or attention without a class token"),
    ],
)
def test_configs_that_make_no_model(changes, words):
    with pytest.raises(UserError, match=words):
        ASTConfig(**changes, encoder=EncoderConfig(dim=32, heads=2))
