import math
import re

import pytest
import torch
from torchaudio.compliance import kaldi
from torchaudio.transforms import MelSpectrogram

from audio import ASTConfig, FeatureConfig, Filterbank
from audio.features import check_filters, frame_samples
from audio.train import AUDIO
from core import UserError
from examples.multimodal.train import MULTIMODAL


def batch(*lengths, padding=0.0):
    """Clips of different loudness; what stands behind them is `padding`."""
    generator = torch.Generator().manual_seed(0)
    waveforms = torch.full((len(lengths), max(lengths) + 500), padding)
    for row, length in enumerate(lengths):
        waveforms[row, :length] = torch.randn(length, generator=generator) * 10.0**-row
    return waveforms, torch.tensor(lengths)


@pytest.mark.parametrize("rate, mels, length, shift", [(16_000, 128, 25.0, 10.0), (22_050, 40, 20.0, 7.3)])
def test_kaldi_features_of_a_batch_are_torchaudios_of_each_clip(rate, mels, length, shift):
    config = FeatureConfig(kind="kaldi", frame_length=length, frame_shift=shift, f_min=50.0, f_max=7000.0)
    waveforms, lengths = batch(5000, 8111, 700, padding=torch.nan)
    features, frames = Filterbank(config, rate, mels)(waveforms, lengths)
    for clip, samples, found, count in zip(waveforms, lengths, features, frames, strict=True):
        expected = kaldi.fbank(
            clip[None, :samples],
            sample_frequency=rate,
            frame_length=length,
            frame_shift=shift,
            low_freq=50.0,
            high_freq=7000.0,
            num_mel_bins=mels,
            window_type="hanning",
        )
        assert count == len(expected)
        torch.testing.assert_close(found[:, :count], expected.T, rtol=1e-5, atol=1e-5)
        assert (found[:, count:] == 0).all()


def test_logmel_features_of_a_batch_are_torchaudios_of_each_clip():
    waveforms, lengths = batch(4000, 6001, 513, padding=torch.nan)
    filterbank = Filterbank(FeatureConfig(frame_length=32.0, frame_shift=8.0, f_min=100.0), 16_000, 40)
    features, frames = filterbank(waveforms, lengths)
    mel = MelSpectrogram(16_000, n_fft=512, hop_length=128, f_min=100.0, n_mels=40, center=False)
    for clip, samples, found, count in zip(waveforms, lengths, features, frames, strict=True):
        expected = mel(clip[:samples]).clamp(min=1.1920929e-07).log()
        assert count == expected.shape[1]
        torch.testing.assert_close(found[:, :count], expected, rtol=1e-5, atol=1e-5)
        assert (found[:, count:] == 0).all()
    assert not filterbank.state_dict()  # the filters follow from the config


@pytest.mark.parametrize("kind", ["kaldi", "logmel"])
def test_centred_features_lack_the_mean_of_each_clip_and_its_loudness(kind):
    waveforms, lengths = batch(4000, 2500, padding=torch.nan)
    plain, counts = Filterbank(FeatureConfig(kind=kind), 16_000, 20)(waveforms, lengths)
    bank = Filterbank(FeatureConfig(kind=kind, centre=True), 16_000, 20)
    for found in (bank(waveforms, lengths)[0], bank(0.1 * waveforms, lengths)[0]):
        for own, before, count in zip(found, plain, counts.tolist(), strict=True):
            expected = before[:, :count] - before[:, :count].mean(dim=1, keepdim=True)
            torch.testing.assert_close(own[:, :count], expected, rtol=0, atol=2e-3)
            assert not own[:, count:].any()


@pytest.mark.parametrize("kind", ["kaldi", "logmel"])
def test_a_floor_lies_below_the_loudest_of_each_clip(kind):
    waveforms, lengths = batch(4000, 2500, padding=torch.nan)
    plain, counts = Filterbank(FeatureConfig(kind=kind), 16_000, 20)(waveforms, lengths)
    found, _ = Filterbank(FeatureConfig(kind=kind, floor=10.0), 16_000, 20)(waveforms, lengths)
    for own, before, count in zip(found, plain, counts.tolist(), strict=True):
        least = before[:, :count].max() - math.log(10)
        assert torch.equal(own[:, :count], before[:, :count].maximum(least)) and not own[:, count:].any()
        assert 0 < (own[:, :count] == least).float().mean() < 1


@pytest.mark.parametrize("kind", ["kaldi", "logmel"])
def test_silence_and_clips_shorter_than_a_frame_are_finite(kind):
    filterbank = Filterbank(FeatureConfig(kind=kind), 16_000, 20)
    waveforms, lengths = torch.zeros(2, 3000), torch.tensor([3000, 1])
    waveforms[1, 0] = 0.5
    features, frames = filterbank(waveforms, lengths)
    assert frames[1] == 1 and features.isfinite().all()
    alone, _ = filterbank(waveforms[1:, :1], lengths[1:])
    torch.testing.assert_close(features[1, :, :1], alone[0])


def test_half_precision_outside_does_not_blur_the_filters():
    filterbank = Filterbank(FeatureConfig(), 16_000, 20)
    waveforms, lengths = batch(3000)
    expected, _ = filterbank(waveforms, lengths)
    with torch.autocast("cpu", torch.bfloat16):
        found, _ = filterbank(waveforms, lengths)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize(
    "changes, mels, words",
    [
        ({"f_max": 9000.0}, 20, "between 0 and 8000 Hz"),
        ({"f_min": 8000.0}, 20, "between 0 and 8000 Hz"),
        ({"f_min": 500.0, "f_max": 400.0}, 20, "f_min must be less than f_max, which is 400, not 500"),
        ({"frame_shift": 25.1}, 20, "frame_shift must be at most frame_length, which is 25 ms, not 25.1"),
        ({"frame_shift": 0.01}, 20, "too short at 16000 Hz"),
        ({"frame_length": 9000.0}, 20, "are 144,000 samples long: choose a shorter frame_length, for at most 65,536"),
        ({"std": 0.0}, 20, "std must be at least 0.001"),
        ({}, 0, "at least 1 mel bin"),
    ],
)
def test_settings_that_make_no_features(changes, mels, words):
    with pytest.raises(UserError, match=words):
        Filterbank(FeatureConfig(**changes), 16_000, mels)


# --- Filters without a frequency ------------------------------------------------------------------------------------


def silent_bins(config, rate, mels):
    """Bins that hear nothing of loud noise."""
    filterbank = Filterbank(config, rate, mels)
    noise = torch.randn(1, 4 * filterbank.length, generator=torch.Generator().manual_seed(0))
    features, _ = filterbank(noise, torch.tensor([noise.shape[1]]))
    return (features[0] < -15).all(dim=1).nonzero().flatten().tolist()


def experiments():
    for experiment in AUDIO.experiments:
        yield pytest.param(experiment().model, id=experiment.__name__)
    for experiment in MULTIMODAL.experiments:
        if hasattr(experiment().model, "audio"):
            yield pytest.param(experiment().model.audio, id=f"multimodal-{experiment.__name__}")
    yield pytest.param(ASTConfig(), id="a model of its own")


@pytest.mark.parametrize("model", experiments())
def test_no_mel_bin_is_silent_by_default(model):
    assert not silent_bins(model.features, model.sample_rate, model.n_mels)
    check_filters(model.features, model.sample_rate, model.n_mels)


@pytest.mark.filterwarnings("ignore:At least one mel filterbank")
@pytest.mark.parametrize("kind", ["kaldi", "logmel"])
@pytest.mark.parametrize("rate, length, f_min, f_max", [(16_000, 25.0, 20.0, None), (8_000, 32.0, 0.0, 3500.0)])
def test_mel_bins_that_would_be_silent_are_refused(kind, rate, length, f_min, f_max):
    config = FeatureConfig(kind=kind, frame_length=length, f_min=f_min, f_max=f_max)
    refused = set()
    for mels in (40, 64, 96, 110, 120, 128, 140, 250):
        silent = silent_bins(config, rate, mels)
        if not silent:
            check_filters(config, rate, mels)
            continue
        refused.add(mels)
        names = ", ".join(map(str, silent[:5]))
        with pytest.raises(
            UserError, match=rf"Of {mels} mel bins some .* silent \({names}.*--model.n-mels to"
        ) as error:
            check_filters(config, rate, mels)
        most = int(re.search(r"at most (\d+)", str(error.value))[1])
        assert 40 < most < min(refused)
        check_filters(config, rate, most)
    assert refused
    with pytest.raises(UserError, match="some would always be silent"):
        check_filters(config, rate, 2**20)  # without making so many


def test_stock_features_have_a_silent_bin():
    """That of AST's checkpoints, whose features must stay as they are."""
    config = FeatureConfig(kind="kaldi")
    assert frame_samples(config, 16_000) == (400, 160)
    assert silent_bins(config, 16_000, 128) == [3]
