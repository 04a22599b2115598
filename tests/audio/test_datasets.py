import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from audio import ASTConfig
from audio.augment import Augment, make_mix, train_transform
from audio.datasets import Folder, Manifest
from audio.decoding import read_audio
from audio.samples import check_audible, collate, read_clip
from core import UserError
from core.data import Sample
from core.data.cache import DecodeCache
from core.training.sampling import SeededDataset

FORM = ASTConfig(max_frames=100, n_mels=32).audio_format
EVERYTHING = Augment(gain=6.0, noise=5.0, shift=0.3)


def tone(pitch=440.0, seconds=0.5, rate=16_000, phase=0.0):
    return 0.4 * np.sin(2 * np.pi * pitch * np.arange(int(seconds * rate)) / rate + phase)


@pytest.mark.parametrize("kind, error", [("wav", 1e-4), ("flac", 1e-4), ("ogg", 0.05), ("mp3", 0.05)])
def test_formats_are_decoded(kind, error, tmp_path):
    soundfile.write(tmp_path / f"a.{kind}", tone(), 16_000)
    found = read_audio(tmp_path / f"a.{kind}", 16_000)
    assert len(found) == 8000
    assert np.abs(found.numpy() - tone())[1000:-1000].max() < error


@pytest.mark.parametrize("rate", [8_000, 22_050, 44_100, 44_101, 48_000])
def test_any_rate_and_number_of_channels_become_the_models(rate, tmp_path):
    left, right = tone(rate=rate), 0.5 * tone(rate=rate)
    soundfile.write(tmp_path / "a.wav", np.stack([left, right], axis=1), rate)
    found = read_audio(tmp_path / "a.wav", 16_000)
    assert abs(len(found) - 8000) <= 1
    size = min(len(found), 8000)
    assert np.abs(found.numpy()[:size] - 0.75 * tone()[:size])[400:-400].max() < 5e-3


def test_folder_and_manifest_agree(clips):
    data = Folder(path=clips).read(FORM)
    assert data.labels == ("high", "low") and [len(part) for part in data.parts().values()] == [14, 2, 4]
    rows = [(path, data.labels[label], split) for split, part in data.parts().items() for path, label in part.samples]
    listed = clips.parent / "list.csv"
    listed.write_text("path,label,split\n" + "\n".join(f"{p.relative_to(clips.parent)},{c},{s}" for p, c, s in rows))
    again = Manifest(path=listed).read(FORM)
    for one, other in zip(again.parts().values(), data.parts().values(), strict=True):
        assert one.samples == other.samples
    samples = [again.train[i] for i in range(6)]
    (ragged,), _ = collate(samples)
    (waveforms, lengths), targets = collate(samples, padded=True)
    assert waveforms.shape == (6, lengths.max()) and len(set(lengths.tolist())) > 1 and targets.shape == (6,)
    for waveform, length, clip in zip(waveforms, lengths, ragged, strict=True):
        assert torch.equal(waveform[:length], clip) and clip.any() and not waveform[length:].any()


def test_a_manifest_of_several_labels(clips):
    listed = clips.parent / "list.csv"
    rows = [f"folder/{c}/{n}.wav,{c};{'odd' if n % 2 else 'even ; even'}" for c in ("high", "low") for n in range(10)]
    listed.write_text("path,label\n" + "\n".join(rows))
    config = Manifest(path=listed, multilabel=True)
    data = config.read(FORM)
    assert data.labels == ("even", "high", "low", "odd") and [len(part) for part in data.parts().values()] == [14, 2, 4]
    targets = collate([data.train[i] for i in range(14)]).targets
    assert targets.shape == (14, 4) and (targets.sum(dim=1) == 2).all()
    assert config.read(FORM).test.samples == data.test.samples
    path, numbers = data.train.samples[0]
    assert (data.labels[numbers[0]], data.labels[numbers[1]]) == (
        path.parent.name,
        "odd" if int(path.stem) % 2 else "even",
    )


def test_several_labels_in_a_list_of_json(clips):
    rows = [
        {"path": f"folder/{c}/{n}.wav", "label": [c, f"{n % 2}"] if n else c}
        for c in ("high", "low")
        for n in range(10)
    ]
    listed = clips.parent / "list.jsonl"
    listed.write_text("\n".join(map(json.dumps, rows)))
    data = Manifest(path=listed, multilabel=True).read(FORM)
    assert data.labels == ("0", "1", "high", "low") and sum(len(part) for part in data.parts().values()) == 20
    for path, numbers in (sample for part in data.parts().values() for sample in part.samples):
        odd = {str(int(path.stem) % 2)} if path.stem != "0" else set()
        assert {data.labels[number] for number in numbers} == {path.parent.name, *odd}


def test_augmentation_is_a_function_of_seed_epoch_and_index(clips):
    data = Folder(path=clips, augment=EVERYTHING, seconds=0.1).read(FORM)
    first, other = SeededDataset(data.train, 0), SeededDataset(data.train, 1)
    sound = first[(2, 3)][0]
    assert len(sound) == 1600
    torch.rand(5)
    assert torch.equal(first[(2, 3)][0], sound)
    assert not torch.equal(first[(3, 3)][0], sound) and not torch.equal(other[(2, 3)][0], sound)
    whole = read_audio(data.test.samples[0][0], 16_000)
    start = (len(whole) - 1600) // 2
    assert torch.equal(data.test[0][0], whole[start : start + 1600])


def test_cached_sounds_are_the_decoded_ones(tmp_path):
    soundfile.write(tmp_path / "a.flac", np.stack([tone(rate=44_100), tone(880, rate=44_100)], axis=1), 44_100)
    cache = DecodeCache(tmp_path / "cache")
    for rate in (16_000, 8_000, 16_000):
        found = read_clip(tmp_path / "a.flac", replace(FORM, sample_rate=rate), cache)
        assert torch.equal(found, read_audio(tmp_path / "a.flac", rate))
    assert len(list(cache.directory.iterdir())) == 2


def test_a_run_with_a_cache_decodes_each_clip_once(clips, monkeypatch):
    calls = []
    monkeypatch.setattr("audio.samples.read_audio", lambda path, rate: calls.append(path) or read_audio(path, rate))
    config = Folder(path=clips, augment=EVERYTHING)
    plain = config.read(FORM)
    calls.clear()
    cached = replace(config, cache=clips.parent / "cache").read(FORM)
    decoded = {epoch: [SeededDataset(cached.train, 0)[(epoch, i)][0] for i in range(14)] for epoch in range(2)}
    assert sorted(calls) == sorted(path for path, _ in cached.train.samples)
    for epoch, clips in decoded.items():
        for index, clip in enumerate(clips):
            assert torch.equal(SeededDataset(plain.train, 0)[(epoch, index)][0], clip)
    cached.train.samples[0][0].unlink()
    with pytest.raises(UserError, match="There is no audio file"):
        cached.train[0]


def test_a_class_of_silence_is_found_without_reading_all_of_it(tmp_path):
    labels, heard = ("loud", "silent"), []

    def read(path):
        heard.append(path)
        return torch.ones(5) if path.name == "sound" else torch.zeros(5)

    def clips(silent, number=0):
        return [
            Sample(Path("sound"), 0),
            *(Sample(Path(str(n)), 1) for n in range(silent)),
            *[Sample(Path("sound"), 1)] * number,
        ]

    with pytest.raises(UserError, match=r"Every training clip of class 'silent' is silent"):
        check_audible(clips(30), labels, read)
    heard.clear()
    with pytest.raises(UserError, match=r"Each of 100 training clips of class 'silent' is silent"):
        check_audible(clips(10_000), labels, read)
    assert len(heard) == 101
    heard.clear()
    check_audible(clips(5000, 5000), labels, read)  # all through the class
    assert len(heard) <= 101
    check_audible([Sample(path, (0, label)) for path, label in clips(5, 1)], labels, read)
    with pytest.raises(UserError, match="Class 'loud' has no training clips"):
        check_audible(clips(1, 1)[1:], labels, read)


@pytest.mark.parametrize("samples", [1, 2, 7])
def test_clips_of_a_few_samples_go_through_every_change(samples, tmp_path):
    augment = Augment(gain=100.0, noise=-100.0, shift=1.0, equalise=100.0, mixup=1.0)
    change = train_transform(8_000, augment)
    for sound in (torch.full((samples,), 0.5), torch.zeros(samples), torch.full((samples,), 1e-30)):
        for _ in range(20):
            found = change(sound)
            assert found.shape == sound.shape and found.isfinite().all()
    batch = make_mix(augment, 3)(collate([(found, 1)]))  # of one
    assert [len(clip) for clip in batch.inputs[0]] == [samples] and batch.targets.tolist() == [[0, 1, 0]]


def test_noise_is_added_at_its_level(clips):
    clean = Folder(path=clips).read(FORM).train
    noisy = Folder(path=clips, augment=Augment(noise=5.0)).read(FORM).train
    for index in range(10):
        difference = noisy[index][0] - clean[index][0]
        level = 10 * torch.log10(clean[index][0].square().mean() / difference.square().mean())
        assert 4.5 < level < 35.5


def test_speed_changes_length_and_pitch_together():
    sound = torch.from_numpy(tone(440, 0.5)).float()
    change, lengths = train_transform(None, Augment(speed=0.2)), set()
    for _ in range(30):
        found = change(sound)
        lengths.add(len(found))
        pitch = torch.fft.rfft(found * torch.hann_window(len(found))).abs().argmax() * 16_000 / len(found)
        assert abs(pitch - 440 * len(sound) / len(found)) < 4
    assert len(lengths) > 15 and 8000 / 1.2 <= min(lengths) < 7200 and 8800 < max(lengths) <= 8000 / 0.8


@pytest.mark.parametrize("samples", [7000, 8000])
def test_no_clip_becomes_too_slow_for_the_model(samples):
    found = {len(train_transform(None, Augment(speed=0.5), longest=8000)(torch.randn(samples))) for _ in range(40)}
    assert max(found) <= 8000 and min(found) < 0.75 * samples and (samples == 8000 or max(found) > samples)
    assert {len(train_transform(6000, Augment(speed=0.5), 8000)(torch.randn(7000))) for _ in range(40)} >= {6000}


def test_equalising_is_a_smooth_gain_of_each_frequency_within_its_limit():
    sound = torch.randn(8001)
    curves = []
    for _ in range(5):
        found = train_transform(None, Augment(equalise=10.0))(sound)
        curve = 20 * torch.log10(torch.fft.rfft(found).abs() / torch.fft.rfft(sound).abs())[5:-5]
        assert curve.abs().max() < 10.1 and curve.diff().abs().max() < 0.5
        curves.append(curve)
    assert torch.stack(curves).std(dim=0).min() > 1


def test_mixing_keeps_the_mass_of_targets_and_the_longer_length(clips):
    data = Folder(path=clips).read(FORM)
    batch = collate([data.train[i] for i in range(4, 12)], padded=True)  # four of each class
    torch.manual_seed(0)
    mixed = make_mix(Augment(mixup=0.8), 2)(batch)
    torch.manual_seed(0)
    ragged = make_mix(Augment(mixup=0.8), 2)(collate([data.train[i] for i in range(4, 12)]))
    for clip, padded, length in zip(*ragged.inputs, *mixed.inputs, strict=True):
        assert torch.equal(clip, padded[:length])
    assert torch.equal(ragged.targets, mixed.targets)
    torch.testing.assert_close(mixed.targets.sum(-1), torch.ones(8))
    lengths = batch.inputs[1]
    assert torch.equal(mixed.inputs[1], torch.maximum(lengths, lengths.roll(1)))
    heard = [int(row.nonzero().max()) + 1 for row in mixed.inputs[0]]
    assert all(abs(h - int(n)) < 5 for h, n in zip(heard, mixed.inputs[1], strict=True))
    pure = (mixed.targets == 1).any(dim=1)
    assert torch.equal(pure, batch.targets == batch.targets.roll(1))  # of one class with the clip before
    assert make_mix(Augment(), 2) is None
