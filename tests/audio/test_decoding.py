"""Invalid audio files are refused; others are read and resampled as other libraries do."""

import os
import random
import socket

import numpy as np
import pytest
import soundfile
import torch
from soundfiles import ID3V1, ID3V2, directly, encoded, mp3, sound, uncounted
from torchaudio import functional as AF
from transformers import ASTFeatureExtractor

from audio import FeatureConfig, Filterbank
from audio.decoding import read_audio, resample
from core import UserError


@pytest.mark.parametrize("name", ["/dev/zero", "/dev/null", "fifo", "socket", "folder", "absent", "a\0b"])
def test_what_is_no_file_is_refused_at_once(name, tmp_path):
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "folder").mkdir()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        with pytest.raises(UserError) as error:
            read_audio(tmp_path / name, 16_000)
    assert str(error.value).count(".") <= 1 + str(tmp_path).count(".") and "audio file" in str(error.value)


GARBAGE = {
    "empty": b"",
    "text": b"hello" * 500,
    "zeros": bytes(5000),
    "noise": np.random.default_rng(0).bytes(50_000),
    "an MPEG header": b"\xff\xfb\x90\xc4" + bytes(10),
    "a RIFF header": encoded(sound())[:44],
    "half a RIFF header": encoded(sound())[:20],
    "a FLAC header": encoded(sound(), format="FLAC")[:42],
    "half a FLAC header": encoded(sound(), format="FLAC")[:20],
    "an Ogg page": encoded(sound(), format="OGG")[:60],
    "magic alone": b".snd",
    "no samples": encoded(np.zeros(0)),
    "tags alone": ID3V2 + ID3V1,
    "a tag that is longer than the file": b"ID3\x04\0\0\x7f\x7f\x7f\x7f" + bytes(100),
}


@pytest.mark.parametrize("name", GARBAGE)
def test_garbage_gets_one_sentence(name, decoded):
    with pytest.raises(UserError, match=r"a\.wav (is|has) [^.]+\.$"):
        decoded(GARBAGE[name])


def test_files_with_random_faults_are_read_or_get_one_sentence(decoded, capfd):
    generator = random.Random(0)
    kinds = [{"format": kind} for kind in ("WAV", "RF64", "AIFF", "AU", "FLAC", "OGG", "CAF")]
    files = [encoded(sound(seconds=0.1), **kind) for kind in kinds] + [mp3(seconds=0.2), uncounted(mp3(seconds=0.2))]
    for number in range(300):
        content = bytearray(files[number % len(files)])
        for _ in range(generator.choice((1, 3, 10))):
            at = generator.randrange(min(len(content), generator.choice((64, 10**6))))
            match generator.randrange(4):
                case 0:
                    content[at] = generator.randrange(256)
                case 1:
                    content[at : at + 4] = generator.choice((b"\xff" * 4, bytes(4), b"\0\0\0\x80"))
                case 2:
                    del content[at + 1 : at + 100]
                case 3:
                    content[at:at] = generator.randbytes(50)
        try:
            assert np.isfinite(decoded(bytes(content))).all()
        except UserError as error:
            assert "\n" not in str(error)
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e30, 1e300])
@pytest.mark.parametrize("channels", [1, 3])
def test_samples_that_are_no_numbers(value, channels, decoded):
    samples = sound(channels=channels)
    samples[5000] = value
    with pytest.raises(UserError, match="holds samples that are not numbers"):
        decoded(encoded(samples, subtype="DOUBLE"))


def test_samples_beyond_full_scale_are_kept(decoded):
    samples = 40_000 * sound()
    assert np.array_equal(decoded(encoded(samples, subtype="FLOAT")), samples.astype("float32"))


# --- As other libraries ---------------------------------------------------------------------------------------------

ENCODINGS = {
    "WAV": ["PCM_16", "PCM_24", "PCM_32", "PCM_U8", "FLOAT", "DOUBLE", "ULAW", "ALAW", "IMA_ADPCM", "MS_ADPCM"],
    "WAVEX": ["PCM_16", "PCM_32", "FLOAT", "ULAW"],
    "AIFF": ["PCM_S8", "PCM_16", "PCM_24", "FLOAT", "ULAW"],
    "AU": ["PCM_16", "DOUBLE", "ALAW"],
    "CAF": ["PCM_16", "ALAC_16"],
    "RF64": ["PCM_16"],
    "W64": ["PCM_24"],
    "FLAC": ["PCM_S8", "PCM_16", "PCM_24"],
    "OGG": ["VORBIS", "OPUS"],
    "MP3": ["MPEG_LAYER_III"],
}
RATES = (8_000, 16_000, 24_000, 44_100, 48_000, 384_000)


def generated():
    """200 files of all encodings, rates, numbers of channels and lengths that go together."""
    generator = np.random.default_rng(0)
    pairs = [(kind, encoding) for kind, encodings in ENCODINGS.items() for encoding in encodings]
    made = 0
    while made < 200:
        for kind, encoding in pairs:
            rate, channels = (int(generator.choice(among)) for among in (RATES, (1, 1, 2, 3, 6, 8)))
            seconds = float(generator.choice((0.01, 0.1, 0.3)))
            if encoding == "VORBIS" and rate > 48_000:  # the encoder would crash
                continue
            try:
                file = encoded(sound(rate, seconds, channels, made), rate, format=kind, subtype=encoding)
            except soundfile.LibsndfileError:  # no MP3 at 384 kHz, no ADPCM of three channels
                continue
            made += 1
            yield f"{kind} {encoding}, {rate} Hz, {channels} channels, {seconds} s", rate, file


def test_200_files_are_read_as_by_libsndfile_torchaudio_and_transformers(decoded):
    extractor = ASTFeatureExtractor(max_length=80)
    filterbank = Filterbank(FeatureConfig(kind="kaldi"), 16_000, 128)
    for number, (name, rate, file) in enumerate(generated()):
        expected = directly(file)
        np.testing.assert_allclose(decoded(file, rate), expected, rtol=0, atol=1e-6, err_msg=name)
        expected = AF.resample(torch.from_numpy(expected), rate, 16_000)
        found = torch.from_numpy(decoded(file))
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5, msg=name)
        if number % 4 == 0 and len(found) >= 400:  # the extractor takes no clip shorter than a frame
            features, _ = filterbank(found[None], torch.tensor([len(found)]))
            theirs = extractor(found.numpy(), sampling_rate=16_000, return_tensors="pt").input_values[0].T
            ours = filterbank.normalise(features)[0]
            torch.testing.assert_close(ours, theirs[:, : ours.shape[1]], rtol=0, atol=1e-4, msg=name)
    assert number >= 199


@pytest.mark.parametrize("rate, wanted", [(44_101, 16_000), (11_027, 16_000), (96_001, 16_000), (8_001, 48_000)])
def test_rates_without_a_common_divisor_are_resampled_without_drift(rate, wanted):
    """Against the tone itself."""
    tones = (np.sin(2 * np.pi * 1234.5 * np.arange(5 * r) / r).astype("float32") for r in (rate, wanted))
    found, expected = resample(torch.from_numpy(next(tones)), rate, wanted).numpy(), next(tones)
    assert len(found) == len(expected)
    assert np.abs(found[1000:-1000] - expected[1000:-1000]).max() < 2e-3


@pytest.mark.parametrize("rate, wanted", [(44_100, 16_000), (8_000, 48_000), (384_000, 1_000)])
def test_filters_that_are_not_kept_are_the_same(rate, wanted, monkeypatch):
    tone = torch.from_numpy(sound(rate, 0.5).astype("float32"))
    expected = resample(tone, rate, wanted)
    monkeypatch.setattr("audio.decoding.FILTERS", 0)
    monkeypatch.setattr("audio.decoding.AT_ONCE", 50_000)
    torch.testing.assert_close(resample(tone, rate, wanted), expected, rtol=0, atol=1e-6)


def test_resampling_keeps_what_fits_and_silences_what_does_not():
    time = np.arange(48_000) / 48_000
    for pitch, expected in ((5000, 1.0), (11_000, 0.0)):
        tone = torch.from_numpy(np.sin(2 * np.pi * pitch * time).astype("float32"))
        found = resample(tone, 48_000, 16_000)[1000:-1000]
        assert abs(found.square().mean().sqrt() * 2**0.5 - expected) < 0.02
