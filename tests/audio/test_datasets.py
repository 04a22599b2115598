import json
import os
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from audio import ASTConfig
from audio.augment import Augment, make_mix
from audio.datasets import DataConfig, check_sound, collate, read_cached, read_data, train_transform
from audio.decoding import read_audio
from core import UserError
from core.data import Sample
from core.data.cache import DecodeCache
from core.training.sampling import SeededDataset

MODEL = ASTConfig(max_frames=100, n_mels=32)
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


def test_folder_and_manifest_agree(sounds):
    data = read_data(DataConfig(name="folder", path=sounds), MODEL)
    assert data.labels == ("high", "low") and len(data.train) == 16 and len(data.test) == 4
    rows = [
        (path, data.labels[label], split) for split in ("train", "test") for path, label in getattr(data, split).samples
    ]
    listed = sounds.parent / "list.csv"
    listed.write_text("path,label,split\n" + "\n".join(f"{p.relative_to(sounds.parent)},{c},{s}" for p, c, s in rows))
    again = read_data(DataConfig(name="manifest", path=listed), MODEL)
    assert again.train.samples == data.train.samples and again.test.samples == data.test.samples
    (waveforms, lengths), targets = collate([again.train[i] for i in range(6)])
    assert waveforms.shape == (6, lengths.max()) and len(set(lengths.tolist())) > 1 and targets.shape == (6,)
    for waveform, length in zip(waveforms, lengths, strict=True):
        assert waveform[:length].any() and not waveform[length:].any()


def test_a_manifest_of_several_labels(sounds):
    listed = sounds.parent / "list.csv"
    rows = [f"folder/{c}/{n}.wav,{c};{'odd' if n % 2 else 'even ; even'}" for c in ("high", "low") for n in range(10)]
    listed.write_text("path,label\n" + "\n".join(rows))
    config = DataConfig(name="manifest", path=listed, multilabel=True)
    data = read_data(config, MODEL)
    assert data.labels == ("even", "high", "low", "odd") and (len(data.train), len(data.test)) == (16, 4)
    targets = collate([data.train[i] for i in range(16)]).targets
    assert targets.shape == (16, 4) and (targets.sum(dim=1) == 2).all()
    assert read_data(config, MODEL).test.samples == data.test.samples
    path, numbers = data.train.samples[0]
    assert (data.labels[numbers[0]], data.labels[numbers[1]]) == (
        path.parent.name,
        "odd" if int(path.stem) % 2 else "even",
    )


def test_several_labels_in_a_list_of_json(sounds):
    rows = [
        {"path": f"folder/{c}/{n}.wav", "label": [c, f"{n % 2}"] if n else c}
        for c in ("high", "low")
        for n in range(10)
    ]
    listed = sounds.parent / "list.jsonl"
    listed.write_text("\n".join(map(json.dumps, rows)))
    data = read_data(DataConfig(name="manifest", path=listed, multilabel=True), MODEL)
    assert data.labels == ("0", "1", "high", "low") and len(data.train) + len(data.test) == 20
    for path, numbers in (*data.train.samples, *data.test.samples):
        odd = {str(int(path.stem) % 2)} if path.stem != "0" else set()
        assert {data.labels[number] for number in numbers} == {path.parent.name, *odd}


def test_augmentation_is_a_function_of_seed_epoch_and_index(sounds):
    config = DataConfig(name="folder", path=sounds, augment=EVERYTHING, seconds=0.1)
    data = read_data(config, MODEL)
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
        assert torch.equal(read_cached(tmp_path / "a.flac", rate, cache), read_audio(tmp_path / "a.flac", rate))
    assert len(list(cache.directory.iterdir())) == 2


def test_a_run_with_a_cache_decodes_each_clip_once(sounds, monkeypatch):
    calls = []
    monkeypatch.setattr("audio.datasets.read_audio", lambda path, rate: calls.append(path) or read_audio(path, rate))
    config = DataConfig(name="folder", path=sounds, augment=EVERYTHING)
    plain = read_data(config, MODEL)
    calls.clear()
    cached = read_data(replace(config, cache=sounds.parent / "cache"), MODEL)
    decoded = {epoch: [SeededDataset(cached.train, 0)[(epoch, i)][0] for i in range(16)] for epoch in range(2)}
    assert sorted(calls) == sorted(path for path, _ in cached.train.samples)
    for epoch, clips in decoded.items():
        for index, clip in enumerate(clips):
            assert torch.equal(SeededDataset(plain.train, 0)[(epoch, index)][0], clip)
    cached.train.samples[0][0].unlink()
    with pytest.raises(UserError, match="There is no sound file"):
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
        check_sound(clips(30), labels, read)
    heard.clear()
    with pytest.raises(UserError, match=r"Each of 100 training clips of class 'silent' is silent"):
        check_sound(clips(10_000), labels, read)
    assert len(heard) == 101
    heard.clear()
    check_sound(clips(5000, 5000), labels, read)  # all through the class
    assert len(heard) <= 101
    check_sound([(path, (0, label)) for path, label in clips(5, 1)], labels, read)
    with pytest.raises(UserError, match="Class 'loud' has no training clips"):
        check_sound(clips(1, 1)[1:], labels, read)


@pytest.mark.parametrize("samples", [1, 2, 7])
def test_clips_of_a_few_samples_go_through_every_change(samples, tmp_path):
    config = DataConfig(augment=Augment(gain=100.0, noise=-100.0, shift=1.0, mixup=1.0), seconds=0.5)
    change = train_transform(config, 16_000)
    for sound in (torch.full((samples,), 0.5), torch.zeros(samples), torch.full((samples,), 1e-30)):
        for _ in range(20):
            found = change(sound)
            assert found.shape == sound.shape and found.isfinite().all()
    batch = make_mix(config.augment, 3)(collate([(found, 1)]))  # of one
    assert batch.inputs[0].shape == (1, samples) and batch.targets.tolist() == [[0, 1, 0]]


def test_noise_is_added_at_its_level(sounds):
    clean = read_data(DataConfig(name="folder", path=sounds), MODEL).train
    noisy = read_data(DataConfig(name="folder", path=sounds, augment=Augment(noise=5.0)), MODEL).train
    for index in range(10):
        difference = noisy[index][0] - clean[index][0]
        level = 10 * torch.log10(clean[index][0].square().mean() / difference.square().mean())
        assert 4.5 < level < 35.5


def test_mixing_keeps_the_mass_of_targets_and_the_longer_length(sounds):
    data = read_data(DataConfig(name="folder", path=sounds), MODEL)
    batch = collate([data.train[i] for i in range(4, 12)])  # four of each class
    torch.manual_seed(0)
    mixed = make_mix(Augment(mixup=0.8), 2)(batch)
    torch.testing.assert_close(mixed.targets.sum(-1), torch.ones(8))
    lengths = batch.inputs[1]
    assert torch.equal(mixed.inputs[1], torch.maximum(lengths, lengths.roll(1)))
    heard = [int(row.nonzero().max()) + 1 for row in mixed.inputs[0]]
    assert all(abs(h - int(n)) < 5 for h, n in zip(heard, mixed.inputs[1], strict=True))
    pure = (mixed.targets == 1).any(dim=1)
    assert torch.equal(pure, batch.targets == batch.targets.roll(1))  # of one class with the clip before
    assert make_mix(Augment(), 2) is None


# --- The official layouts -------------------------------------------------------------------------------------------


def speech_commands(root: Path) -> Path:
    folder = root / "SpeechCommands" / "speech_commands_v0.02"
    for number, word in enumerate(("yes", "no", "_background_noise_")):
        (folder / word).mkdir(parents=True)
        for speaker in range(6):
            name = f"{speaker:08x}_nohash_0.wav" if word[0] != "_" else f"hum{speaker}.wav"
            soundfile.write(folder / word / name, tone(300 * (number + 1)), 16_000)
    (folder / "validation_list.txt").write_text("yes/00000000_nohash_0.wav\nno/00000000_nohash_0.wav\n")
    (folder / "testing_list.txt").write_text("yes/00000001_nohash_0.wav\nno/00000001_nohash_0.wav\n")
    return folder


def test_speechcommands_keeps_to_the_official_lists(tmp_path):
    speech_commands(tmp_path)
    data = read_data(DataConfig(name="speechcommands", path=tmp_path), MODEL)
    assert data.labels == ("no", "yes")
    names = [[f"{path.parent.name}/{path.name}" for path, _ in part.samples] for part in (data.train, data.test)]
    assert names[1] == ["yes/00000001_nohash_0.wav", "no/00000001_nohash_0.wav"]
    assert sorted(names[0]) == sorted(f"{w}/{s:08x}_nohash_0.wav" for w in ("yes", "no") for s in range(2, 6))
    sound, label = data.test[0]
    assert len(sound) == 8000 and label == 1


def test_speechcommands_unpacks_the_official_archive(tmp_path):
    made = speech_commands(tmp_path / "made")
    (tmp_path / "new").mkdir()
    with tarfile.open(tmp_path / "new" / "speech_commands_v0.02.tar.gz", "w:gz") as archive:
        archive.add(made, ".")
    data = read_data(DataConfig(name="speechcommands", path=tmp_path / "new"), MODEL)
    assert len(data.train) == 8 and len(data.test[1][0]) == 8000


def test_speechcommands_that_cannot_be_fetched(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=r"could not be read or downloaded .* fetch speech_commands_v0.02.tar.gz and"):
        read_data(DataConfig(name="speechcommands", path=tmp_path / "file"), MODEL)


def broken_archive(root):
    (root / "speech_commands_v0.02.tar.gz").write_bytes(b"\x1f\x8b" + bytes(500))


def cut_archive(root):
    made = speech_commands(root / "made")
    with tarfile.open(root / "speech_commands_v0.02.tar.gz", "w:gz") as archive:
        archive.add(made, ".")
    whole = (root / "speech_commands_v0.02.tar.gz").read_bytes()
    (root / "speech_commands_v0.02.tar.gz").write_bytes(whole[: len(whole) // 2])


def empty_line(root):
    with (speech_commands(root) / "testing_list.txt").open("a") as file:
        file.write("\n")


def strange_name(root):
    folder = speech_commands(root)
    (folder / "yes" / "00000002_nohash_0.wav").rename(folder / "yes" / "x_nohash_y.wav")


def list_of_bytes(root):
    (speech_commands(root) / "testing_list.txt").write_bytes(b"\xff\xfe\xfa")


def no_list(root):
    (speech_commands(root) / "validation_list.txt").unlink()


def list_from_a_pipe(root):
    path = speech_commands(root) / "testing_list.txt"
    path.unlink()
    os.mkfifo(path)


def missing_clip(root):
    (speech_commands(root) / "yes" / "00000001_nohash_0.wav").unlink()


@pytest.mark.parametrize(
    "damage",
    [broken_archive, cut_archive, empty_line, strange_name, list_of_bytes, no_list, list_from_a_pipe, missing_clip],
)
def test_damaged_speechcommands_get_one_sentence(damage, tmp_path):
    damage(tmp_path)
    with pytest.raises(UserError, match=r": fetch speech_commands_v0.02.tar.gz and unpack it into") as error:
        read_data(DataConfig(name="speechcommands", path=tmp_path), MODEL)
    assert "\n" not in str(error.value)


def test_damaged_clips_are_named(tmp_path):
    path = speech_commands(tmp_path) / "yes" / "00000001_nohash_0.wav"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"yes/00000001_nohash_0.wav is cut short"):
        read_data(DataConfig(name="speechcommands", path=tmp_path), MODEL).test[0]
    root = esc50(tmp_path)
    (root / "audio" / "1-1000-A-0.wav").write_bytes(b"hello")
    with pytest.raises(UserError, match=r"1-1000-A-0.wav is not a sound file"):
        read_data(DataConfig(name="esc50", path=root), MODEL).test[0]


def test_speechcommands_with_a_word_that_is_only_tested(tmp_path):
    folder = speech_commands(tmp_path)
    lines = "".join(f"no/{speaker:08x}_nohash_0.wav\n" for speaker in range(1, 6))
    (folder / "testing_list.txt").write_text(lines)
    with pytest.raises(UserError, match="label 'no' is only in the testing list"):
        read_data(DataConfig(name="speechcommands", path=tmp_path), MODEL)


def esc50(root: Path) -> Path:
    (root / "audio").mkdir(parents=True)
    (root / "meta").mkdir()
    rows = ["filename,fold,target,category,esc10,src_file,take"]
    for fold in range(1, 6):
        for target, category in ((0, "dog"), (10, "rain")):
            name = f"{fold}-{1000 + target}-A-{target}.wav"
            soundfile.write(root / "audio" / name, tone(200 + 50 * target, rate=44_100), 44_100)
            rows.append(f"{name},{fold},{target},{category},True,{1000 + target},A")
    (root / "meta" / "esc50.csv").write_text("\n".join(rows))
    return root


@pytest.mark.parametrize("fold", [1, 4])
def test_esc50_is_tested_on_one_fold(fold, tmp_path):
    data = read_data(DataConfig(name="esc50", path=esc50(tmp_path), fold=fold), MODEL)
    assert data.labels == ("dog", "rain") and len(data.train) == 8
    assert [path.name for path, _ in data.test.samples] == [f"{fold}-1000-A-0.wav", f"{fold}-1010-A-10.wav"]
    assert not {path.name[0] for path, _ in data.train.samples} & {str(fold)}
    sound, label = data.test[1]
    assert label == 1 and abs(len(sound) - 8000) <= 1


def test_esc50_mistakes(tmp_path):
    with pytest.raises(UserError, match=r"no .*meta/esc50.csv: fetch"):
        read_data(DataConfig(name="esc50", path=tmp_path), MODEL)
    root = esc50(tmp_path)
    with pytest.raises(UserError, match=r"--data.fold 6 leaves nothing .* the folds are 1, 2, 3, 4, 5"):
        read_data(DataConfig(name="esc50", path=root, fold=6), MODEL)
    table = root / "meta" / "esc50.csv"
    rows = table.read_text()
    table.write_text(rows.replace("1-1000-A-0.wav,1,0,dog", "1-1000-A-0.wav,1,0,cat"))
    with pytest.raises(UserError, match=r"category 'cat' is only in fold 1, so it can't be learnt"):
        read_data(DataConfig(name="esc50", path=root), MODEL)
    table.write_text(rows)
    (root / "audio" / "1-1010-A-10.wav").unlink()
    with pytest.raises(UserError, match=r"row 2: there is no file .*1-1010-A-10.wav"):
        read_data(DataConfig(name="esc50", path=root), MODEL)


def test_dtmf_comes_at_its_own_rate(few_tones):
    with pytest.raises(UserError, match="made at 8000 Hz"):
        read_data(DataConfig(), replace(MODEL, sample_rate=16_000))
