"""Equal outputs with transformers, on random weights, from the waveform on."""

import json
import pickle
import sys
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import ASTConfig as PeerConfig
from transformers import ASTFeatureExtractor, ASTForAudioClassification

from audio import AST, from_hf
from audio.pretrained import load_pretrained
from core import UserError, WeightsError

SMALL = {
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "intermediate_size": 96,
    "max_length": 204,
    "num_labels": 7,
}
SECONDS = (1.3, 2.0, 0.4)


def peer_model(**changes):
    torch.manual_seed(0)
    model = ASTForAudioClassification(PeerConfig(**{**SMALL, **changes})).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # zeros would hide mistakes
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model


def waveforms():
    generator = torch.Generator().manual_seed(1)
    return [0.1 * torch.randn(int(s * 16_000), generator=generator) for s in SECONDS]


def extractor_of(peer, **changes):
    return ASTFeatureExtractor(num_mel_bins=peer.config.num_mel_bins, max_length=peer.config.max_length, **changes)


def assert_equal_logits(ours, peer, extractor):
    clips = waveforms()
    inputs = extractor([s.numpy() for s in clips], sampling_rate=16_000, return_tensors="pt")
    lengths = torch.tensor([len(s) for s in clips])
    padded = torch.nn.utils.rnn.pad_sequence(clips, batch_first=True, padding_value=torch.nan)
    with torch.no_grad():
        expected = peer(**inputs).logits
        together = ours(padded, lengths)
        alone = torch.cat([ours(s[None]) for s in clips])
    for found in (together, alone):
        assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


VARIANTS = {
    "stock": {},
    "other strides": {"frequency_stride": 12, "time_stride": 7},
    "other mel bins": {"num_mel_bins": 64},
    "no qkv bias": {"qkv_bias": False},
    "gelu_new": {"hidden_act": "gelu_new"},
    "whole patches": {"patch_size": 8, "frequency_stride": 8, "time_stride": 8},
}


@pytest.mark.parametrize("name", VARIANTS)
def test_logits_equal_transformers(name):
    peer = peer_model(**VARIANTS[name])
    extractor = extractor_of(peer)
    ours = from_hf(peer, extractor=extractor)
    assert not ours.config.mask_padding
    assert_equal_logits(ours, peer, extractor)


def test_logits_equal_transformers_at_full_size():
    peer = peer_model(max_length=1024, hidden_size=192, num_attention_heads=3, num_labels=527)
    assert_equal_logits(from_hf(peer), peer, ASTFeatureExtractor())


def test_another_normalisation():
    peer = peer_model()
    for extractor in (extractor_of(peer, mean=-6.8, std=5.5), extractor_of(peer, do_normalize=False)):
        assert_equal_logits(from_hf(peer, extractor=extractor), peer, extractor)


def test_a_local_directory(tmp_path):
    peer = peer_model(id2label={0: "dog", 1: "cat"}, num_labels=2, problem_type="multi_label_classification")
    extractor = extractor_of(peer, mean=-5.0, std=4.0)
    peer.save_pretrained(tmp_path)
    extractor.save_pretrained(tmp_path)
    ours = from_hf(str(tmp_path))
    assert ours.config.labels == ("dog", "cat") and ours.config.multilabel
    assert_equal_logits(ours, peer, extractor)
    ours.save_pretrained(tmp_path / "ours")
    again = AST.from_pretrained(tmp_path / "ours").eval()
    assert again.config == ours.config
    sound = waveforms()[0][None]
    torch.testing.assert_close(again(sound), ours(sound), rtol=0, atol=0)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(
        json.dumps({**config, "architectures": None})
    )  # the weights have a classifier
    assert from_hf(tmp_path).config == ours.config


def test_resized_in_time_frequency_and_stride():
    peer = peer_model()
    stock = from_hf(peer)
    body = stock.embed.patches.positions.weight
    ours = from_hf(peer, max_frames=300, n_mels=96, stride=(8, 12), mask_padding=True)
    grid = ((96 - 16) // 8 + 1, (300 - 16) // 12 + 1)
    assert ours.embed.grid == grid and ours.config.n_mels == 96
    moved = ours.embed.patches.positions.weight
    assert moved.shape == (2 + grid[0] * grid[1], 48)
    torch.testing.assert_close(moved[:2], body[:2])
    # The corners' neighbourhoods stay where they were: low bins at the start, high bins at the end.
    old, new = body[2:].unflatten(0, stock.embed.grid), moved[2:].unflatten(0, grid)
    for corner in ((0, 0), (0, -1), (-1, 0), (-1, -1)):
        near = torch.cosine_similarity(old[corner], new[corner], dim=0)
        assert near > 0.6, corner
    sound = waveforms()[1][None]
    assert ours(sound).isfinite().all()
    # A clip alone and in a batch, on stock weights.
    clips = waveforms()
    padded = torch.nn.utils.rnn.pad_sequence(clips, batch_first=True, padding_value=torch.nan)
    together = ours(padded, torch.tensor([len(s) for s in clips]))
    for row, clip in enumerate(clips):
        torch.testing.assert_close(together[row], ours(clip[None])[0], rtol=0, atol=1e-5)


def test_padding_is_attended_to_only_where_it_was_learnt():
    peer, sound = peer_model(), waveforms()[0][None]
    longer = torch.nn.functional.pad(sound, (0, 5000), value=torch.nan)
    length = torch.tensor([sound.shape[1]])
    for mask_padding in (False, True):
        ours = from_hf(peer, mask_padding=mask_padding)
        torch.testing.assert_close(ours(longer, length), ours(sound), rtol=0, atol=1e-5)
    assert (from_hf(peer)(sound) - from_hf(peer, mask_padding=True)(sound)).abs().max() > 1e-2


def test_a_new_number_of_classes_starts_the_head_afresh_and_says_so():
    peer = peer_model()
    with pytest.warns(
        UserWarning, match="checkpoint's head is for 7 classes, not 3 classes: the head is initialised at random"
    ):
        ours = from_hf(peer, classes=3)
    sound = waveforms()[0][None]
    assert ours(sound).shape == (1, 3) and ours.config.labels == ()
    torch.testing.assert_close(ours.features(sound), from_hf(peer).features(sound))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        from_hf(peer, classes=7)


def test_every_key_is_accounted_for():
    peer = peer_model()
    peer.audio_spectrogram_transformer.extra = torch.nn.Linear(2, 2)
    with pytest.raises(WeightsError, match=r"no rule for: extra.weight"):
        from_hf(peer)


# --- Checkpoints that are not as they should be ---------------------------------------------------------------------


def saved(folder, peer=None):
    peer = peer or peer_model()
    peer.save_pretrained(folder)
    extractor_of(peer).save_pretrained(folder)
    return folder


def change_weights(folder, change):
    weights = load_file(folder / "model.safetensors")
    save_file(change(weights), folder / "model.safetensors", metadata={"format": "pt"})


NORM, HEAD = "audio_spectrogram_transformer.layernorm.weight", "classifier.dense.weight"
FAULTS = {
    "missing": (
        lambda w: {k: t for k, t in w.items() if k != NORM},
        "not in the checkpoint: encoder.final_norm.weight",
    ),
    "no head": (
        lambda w: {k: t for k, t in w.items() if "classifier" not in k},
        "not in the checkpoint: head_norm.weight; .* not in the checkpoint: head.weight",
    ),
    "extra": (lambda w: {**w, "extra.weight": torch.ones(2)}, "no rule for: extra.weight"),
    "shape": (
        lambda w: {**w, HEAD: torch.ones(9, 48)},
        r"head.bias: \(7,\) in the checkpoint, \(9,\) in the model",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_checkpoint_whose_keys_do_not_fit_is_refused(name, tmp_path):
    change, words = FAULTS[name]
    change_weights(saved(tmp_path), change)
    with pytest.raises(WeightsError, match=words):
        from_hf(tmp_path)
    with pytest.raises(UserError, match=words) as error:
        load_pretrained(str(tmp_path))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.", "module._orig_mod."])
def test_prefixes_that_training_leaves_are_understood(prefix, tmp_path):
    peer = peer_model()
    saved(tmp_path, peer)
    change_weights(tmp_path, lambda weights: {f"{prefix}{key}": tensor for key, tensor in weights.items()})
    assert_equal_logits(from_hf(tmp_path), peer, extractor_of(peer))


def test_weights_in_a_bin_file_are_served(tmp_path):
    peer = peer_model()
    saved(tmp_path, peer)
    torch.save(load_file(tmp_path / "model.safetensors"), tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    assert_equal_logits(from_hf(tmp_path), peer, extractor_of(peer))
    for content in (b"", b"garbage", pickle.dumps(print)):
        (tmp_path / "pytorch_model.bin").write_bytes(content)
        with pytest.raises(UserError, match=r"is damaged, or holds Python objects|cannot be read"):
            load_pretrained(str(tmp_path))


def cut(path):
    path.write_bytes(path.read_bytes()[:100])


def bert(path):
    path.write_text(path.read_text().replace("audio-spectrogram-transformer", "bert"))


def other_extractor(path):
    path.write_text(path.read_text().replace("ASTFeatureExtractor", "Wav2Vec2FeatureExtractor"))


@pytest.mark.parametrize(
    "name, change, words",
    [
        ("preprocessor_config.json", Path.unlink, "has no preprocessor_config.json, which says how .*: copy it from"),
        ("preprocessor_config.json", cut, r"preprocessor_config\.json is not as it was written: invalid JSON"),
        (
            "preprocessor_config.json",
            other_extractor,
            "is of type Wav2Vec2FeatureExtractor, not ASTFeatureExtractor",
        ),
        ("config.json", cut, "config.json is not as it was written"),
        (
            "config.json",
            bert,
            "takes sound models of .* type audio-spectrogram-transformer.*, not ASTForAudioClassification \\(bert\\)",
        ),
        ("model.safetensors", Path.unlink, "holds no weights"),
        ("model.safetensors", cut, "cannot be read: .*header"),
    ],
)
def test_files_that_are_missing_or_damaged_are_named(name, change, words, tmp_path):
    change(saved(tmp_path) / name)
    with pytest.raises(UserError, match=words) as error:
        load_pretrained(str(tmp_path))
    assert "\n" not in str(error.value)


def test_classes_without_a_name_and_several_at_once(tmp_path):
    """As many names as outputs, but for other numbers; and fewer names than outputs."""
    peer = peer_model(problem_type="multi_label_classification")
    for names in ({0: "dog", 2: "cat", 7: "far", 8: "a", 9: "b", 10: "c", 11: "d"}, {0: "dog", 2: "cat"}):
        peer.config.id2label = names
        found = [from_hf(peer, extractor=extractor_of(peer))]
        if len(names) == 7:
            found.append(from_hf(saved(tmp_path, peer)))
        for ours in found:
            assert ours.config.labels == ("dog", "LABEL_1", "cat", "LABEL_3", "LABEL_4", "LABEL_5", "LABEL_6")
            assert ours.config.multilabel
            logits = ours(waveforms()[0][None])
            assert torch.equal(ours.probabilities(logits), logits.sigmoid())
            assert_equal_logits(ours, peer, extractor_of(peer))


def test_what_has_no_equal_here_is_named(monkeypatch):
    with pytest.raises(ValueError, match=r"takes sound models of transformers of type .*, not Linear\.$"):
        from_hf(torch.nn.Linear(2, 2))
    with pytest.raises(ValueError, match="does not support activation 'silu'"):
        from_hf(peer_model(hidden_act="silu"))
    with pytest.raises(ValueError, match="does not support regression"):
        from_hf(peer_model(problem_type="regression"))
    with pytest.raises(UserError, match="returns 128 mel bins, but the model takes 64"):
        from_hf(peer_model(num_mel_bins=64))
    monkeypatch.setitem(sys.modules, "transformers", None)  # as if it were not installed
    with pytest.raises(UserError, match="pip install transformers"):
        from_hf("anything")
