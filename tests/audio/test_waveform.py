"""Models of waveforms: equal outputs with transformers on random weights, and padding that nothing sees."""

import json
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from audio_peers import STABLE, clips, difference, make_data2vec, make_waveform, make_wavlm, padded
from safetensors.torch import load_file, save_file
from transformers import Wav2Vec2FeatureExtractor

from audio import WaveformModel, from_hf
from audio.pretrained import load_pretrained
from core import UserError, WeightsError
from core.testing import check_model

PEERS = {
    "wav2vec 2.0": partial(make_waveform, "Wav2Vec2"),
    "wav2vec 2.0, stable": partial(make_waveform, "Wav2Vec2", **STABLE),
    "HuBERT": partial(make_waveform, "Hubert"),
    "HuBERT, stable": partial(make_waveform, "Hubert", **STABLE, feat_proj_layer_norm=False),
    "WavLM": make_wavlm,
    "WavLM, stable": partial(make_wavlm, **STABLE),
    "data2vec": make_data2vec,
}
KINDS = ("Model", "ForSequenceClassification")
SECONDS = (1.3, 0.7, 2.0, 0.05, 1.3)
RATE = 16_000


def sounds():
    return [clip + 0.02 for clip in clips(SECONDS)]  # they have a mean, which is taken away


def extractor(**changes):
    return Wav2Vec2FeatureExtractor(**changes)


def inputs(given, made):
    return made([clip.numpy() for clip in given], sampling_rate=RATE, padding=len(given) > 1, return_tensors="pt")


def states(peer, given, made):
    """The last hidden states of a base model, or the logits of a classifier."""
    with torch.no_grad():
        found = peer(**inputs(given, made))
    return found.logits if "logits" in found else found.last_hidden_state


def alone(peer, made):
    """Of each clip by itself, where transformers has no padding to see: one row for each frame or each clip."""
    return torch.cat([states(peer, [clip], made).flatten(0, -2) for clip in sounds()])


@torch.no_grad()
def ways(ours):
    """Ours of a padded batch, of a list, and of each clip by itself, as `alone`."""
    batch, lengths = padded(sounds())
    if ours.config.classes:
        yield ours(batch, lengths)
        yield ours(sounds())
        yield torch.cat([ours(clip[None]) for clip in sounds()])
        return
    tokens = ours.encode(batch, lengths)
    assert not tokens.x[~tokens.mask].any()
    yield tokens.x[tokens.mask]
    yield ours.encode(sounds()).x[0]
    yield torch.cat([ours.encode(clip[None]).x[0] for clip in sounds()])


def saved(peer, folder, **changes):
    peer.save_pretrained(folder)
    extractor(**changes).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", PEERS)
def test_a_clip_gives_what_it_gives_alone_in_transformers(name, kind, tmp_path):
    peer = PEERS[name](kind)
    expected = alone(peer, extractor())
    for ours in (from_hf(peer), from_hf(saved(peer, tmp_path))):
        assert isinstance(ours, WaveformModel) and ours.config.mask_padding
        assert all(difference(found, expected) <= 1e-5 for found in ways(ours))


@pytest.mark.parametrize("mask", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", PEERS)
def test_padding_is_seen_as_in_transformers_on_request(name, kind, mask):
    peer, made = PEERS[name](kind), extractor(return_attention_mask=mask)
    ours = from_hf(peer, extractor=made, mask_padding=False)
    batch, lengths = padded(sounds())
    expected = states(peer, sounds(), made)
    with torch.no_grad():
        if kind == "Model":
            tokens = [ours.encode(batch, lengths), ours.encode(sounds())]
            real = torch.ones(expected.shape[:2], dtype=torch.bool) if tokens[0].mask is None else tokens[0].mask
            assert bool(real.all()) != mask
            found, expected = [each.x[real] for each in tokens], expected[real]
        else:
            found = [ours(batch, lengths), ours(sounds())]
    assert all(difference(each, expected) <= 1e-5 for each in found)


@pytest.mark.parametrize("changes", [{}, STABLE], ids=["post", "stable"])
def test_a_weighted_sum_of_layers_is_pooled(changes):
    peer = make_waveform("Wav2Vec2", "ForSequenceClassification", use_weighted_layer_sum=True, **changes)
    with torch.no_grad():
        peer.layer_weights.copy_(torch.tensor([0.5, -1.0, 2.0, 1.0]))
    ours = from_hf(peer)
    assert ours.config.head_layers
    assert all(difference(found, alone(peer, extractor())) <= 1e-5 for found in ways(ours))


@pytest.mark.parametrize("kind", ["ForPreTraining", "ForCTC"])
def test_of_other_models_the_encoder_is_taken(kind, tmp_path):
    peer = make_waveform("Wav2Vec2", kind, codevector_dim=16, num_codevectors_per_group=8)
    expected = alone(peer.wav2vec2, extractor())
    for ours in (from_hf(peer), from_hf(saved(peer, tmp_path))):
        assert ours.config.classes == 0 and difference(next(ways(ours)), expected) <= 1e-5


def test_weight_norm_under_its_older_names(tmp_path):
    peer = make_waveform("Wav2Vec2")
    file = saved(peer, tmp_path) / "model.safetensors"
    names = {"parametrizations.weight.original0": "weight_g", "parametrizations.weight.original1": "weight_v"}
    weights = load_file(file)
    for new, old in names.items():
        [key] = [key for key in weights if key.endswith(new)]
        weights[key.replace(new, old)] = weights.pop(key)
    save_file(weights, file, metadata={"format": "pt"})
    assert torch.equal(next(ways(from_hf(tmp_path))), next(ways(from_hf(peer))))


def test_clips_may_be_shorter_than_a_frame_or_not_normalised():
    peer, made = make_waveform("Wav2Vec2"), extractor(do_normalize=False)
    ours = from_hf(peer, extractor=made)
    assert difference(next(ways(ours)), alone(peer, made)) <= 1e-5
    short, silence = torch.randn(123), torch.zeros(400 - 123)
    expected = states(peer, [torch.cat([short, silence])], made)
    with torch.no_grad():
        batch, lengths = padded([short, torch.randn(5_000)])
        for found in (ours.encode(batch, lengths).x[:1, :1], ours.encode([short]).x, ours.encode(short[None]).x):
            assert difference(found, expected) <= 1e-5


def test_frames_are_counted():
    config = from_hf(make_waveform("Wav2Vec2")).config
    assert config.frame_samples == (400, 320)
    peer = make_waveform("Wav2Vec2")
    for samples in (400, 719, 720, 16_000, 16_079, 16_080):
        assert config.count_tokens(samples) == peer._get_feat_extract_output_lengths(samples)


# --- Padding, by the conformance kit ----------------------------------------------------------------------------------

LENGTHS = torch.tensor([6_000, 4_000, 2_500])
INSIDE = torch.arange(6_000) < LENGTHS[:, None]
WAVES = torch.randn(3, 6_000, generator=torch.Generator().manual_seed(0)).where(INSIDE, 0)
ABOUT_PADDING = ("padding-changes-nothing", "masked-never-leaks")


def failures(factory, call=None):
    """Of the checks about padding."""
    more = (F.pad(WAVES, (0, 2_000)), LENGTHS)
    other = (WAVES.where(INSIDE, 1.0), LENGTHS)
    report = check_model(factory, (WAVES, LENGTHS), padded=more, altered=other, call=call, only=ABOUT_PADDING)
    assert len(report.results) == 2
    return [result.check for result in report.failed]


def with_mask(peer, waves, lengths):
    """transformers' model, with a mask of the padding."""
    return peer(waves, attention_mask=(torch.arange(waves.shape[1]) < lengths[:, None]).long()).logits


@pytest.mark.parametrize("name", PEERS)
def test_the_kit_passes_ours(name):
    assert failures(lambda: from_hf(PEERS[name]("ForSequenceClassification"))) == []


@pytest.mark.parametrize("name", ["wav2vec 2.0", "HuBERT", "WavLM", "data2vec"])
def test_the_kit_fails_those_of_transformers(name):
    """huggingface/transformers#21534, #25621, #47739: their norm over the clip, or their positions, see the padding."""
    assert "padding-changes-nothing" in failures(partial(PEERS[name], "ForSequenceClassification"), with_mask)
    stock = partial(from_hf, PEERS[name]("ForSequenceClassification"), mask_padding=False)
    assert "padding-changes-nothing" in failures(stock)


# --- Checkpoints that are not as they should be -----------------------------------------------------------------------


def test_a_new_number_of_classes_starts_the_head_afresh_and_says_so():
    peer = make_waveform("Wav2Vec2", "ForSequenceClassification")
    with pytest.warns(UserWarning, match="head is for 5 classes, not 3 classes"):
        ours = from_hf(peer, classes=3)
    assert torch.equal(ours.features(sounds()), from_hf(peer).features(sounds()))
    assert ours(sounds()).shape == (5, 3)
    with pytest.warns(UserWarning, match="head is for 0 classes, not 3 classes"):
        assert from_hf(make_waveform("Hubert"), classes=3)(sounds()).shape == (5, 3)


def test_classes_and_what_they_are(tmp_path):
    peer = make_waveform(
        "Hubert",
        "ForSequenceClassification",
        num_labels=2,
        id2label={0: "dog", 1: "cat"},
        problem_type="multi_label_classification",
    )
    ours = from_hf(saved(peer, tmp_path))
    assert ours.config.labels == ("dog", "cat") and ours.config.multilabel
    logits = ours(sounds())
    assert torch.equal(ours.probabilities(logits), logits.sigmoid())
    ours.save_pretrained(tmp_path / "ours")
    again = load_pretrained(str(tmp_path / "ours"))
    assert again.config == ours.config and torch.equal(again(sounds()), logits)


@pytest.mark.parametrize(
    "peer, words",
    [
        (partial(make_waveform, "Wav2Vec2", add_adapter=True), "adapter after the encoder"),
        (partial(make_waveform, "Wav2Vec2", **STABLE, adapter_attn_dim=4), "adapters of languages"),
        (partial(make_waveform, "Hubert", conv_pos_batch_norm=True), "BatchNorm of positions"),
        (partial(make_waveform, "Wav2Vec2", feat_extract_activation="relu"), "convolutions with activation relu"),
        (partial(make_waveform, "Wav2Vec2", hidden_act="silu"), "activation 'silu'"),
        (partial(make_waveform, "Wav2Vec2", "ForXVector"), "not Wav2Vec2ForXVector"),
        (partial(make_waveform, "Wav2Vec2", "ForAudioFrameClassification"), "ForAudioFrameClassification"),
        (partial(make_waveform, "Hubert", "ForSequenceClassification", problem_type="regression"), "regression"),
    ],
)
def test_what_has_no_equal_here_is_named(peer, words):
    with pytest.raises(UserError, match=words):
        from_hf(peer())


def test_options_of_other_models_and_damaged_checkpoints_are_named(tmp_path):
    with pytest.raises(UserError, match=r"type wav2vec2 has no n_mels"):
        from_hf(make_waveform("Wav2Vec2"), n_mels=64)
    file = saved(make_waveform("Wav2Vec2"), tmp_path) / "model.safetensors"
    weights = load_file(file)
    save_file({**weights, "extra.weight": torch.ones(2)}, file, metadata={"format": "pt"})
    with pytest.raises(WeightsError, match=r"no rule for: extra.weight"):
        from_hf(tmp_path)
    for key in ("feature_projection.layer_norm.weight", "encoder.layers.1.attention.k_proj.bias"):
        save_file({k: t for k, t in weights.items() if k != key}, file, metadata={"format": "pt"})
        with pytest.raises(WeightsError, match=r"embed.feature_norm.weight|encoder.layers.1.attention.k_proj.bias"):
            from_hf(tmp_path)


@pytest.mark.parametrize(
    "given, words",
    [
        (([torch.zeros(500), torch.zeros(0)],), "Clip 1 of the list has no samples"),
        (([],), "A list of no clips"),
        ((torch.zeros(2, 500), torch.tensor([500, 0])), "A clip has no samples"),
        (([torch.zeros(500)], torch.tensor([500])), "leave out the lengths"),
        ((torch.zeros(2, 500), torch.tensor([500, 501])), "A clip of 501 samples is in a batch of 500 samples"),
    ],
)
def test_clips_that_are_refused(given, words):
    with pytest.raises(UserError, match=words):
        from_hf(make_waveform("Wav2Vec2"))(*given)


def test_how_clips_are_prepared_is_read_from_a_processor_with_a_tokenizer(tmp_path):
    """transformers 5 writes both into one file."""
    peer, made = PEERS["wav2vec 2.0"]("Model"), extractor(return_attention_mask=True)
    peer.save_pretrained(tmp_path)
    (tmp_path / "processor_config.json").write_text(json.dumps({"feature_extractor": made.to_dict()}))
    assert from_hf(tmp_path).config == from_hf(peer, extractor=made).config
