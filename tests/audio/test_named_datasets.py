"""The official layouts of named data sets: how they are split, and what is said of damaged ones."""

import os
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile

from audio import ASTConfig
from audio.datasets import DTMF, ESC50, SpeechCommands
from core import UserError

FORM = ASTConfig(max_frames=100, n_mels=32).audio_format


def tone(pitch=440.0, seconds=0.5, rate=16_000):
    return 0.4 * np.sin(2 * np.pi * pitch * np.arange(int(seconds * rate)) / rate)


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
    data = SpeechCommands(path=tmp_path).read(FORM)
    assert data.labels == ("no", "yes")
    names = [[f"{path.parent.name}/{path.name}" for path, _ in part.samples] for part in data.parts().values()]
    assert names[2] == ["yes/00000001_nohash_0.wav", "no/00000001_nohash_0.wav"]
    assert names[1] == ["yes/00000000_nohash_0.wav", "no/00000000_nohash_0.wav"]
    assert data.note == "The validation and the test split are the data's own."
    assert sorted(names[0]) == sorted(f"{w}/{s:08x}_nohash_0.wav" for w in ("yes", "no") for s in range(2, 6))
    sound, label = data.test[0]
    assert len(sound) == 8000 and label == 1


def test_speechcommands_unpacks_the_official_archive(tmp_path):
    made = speech_commands(tmp_path / "made")
    (tmp_path / "new").mkdir()
    with tarfile.open(tmp_path / "new" / "speech_commands_v0.02.tar.gz", "w:gz") as archive:
        archive.add(made, ".")
    data = SpeechCommands(path=tmp_path / "new").read(FORM)
    assert len(data.train) == 8 and len(data.test[1][0]) == 8000


def test_speechcommands_that_cannot_be_fetched(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=r"could not be read or downloaded .* fetch speech_commands_v0.02.tar.gz and"):
        SpeechCommands(path=tmp_path / "file").read(FORM)


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
        SpeechCommands(path=tmp_path).read(FORM)
    assert "\n" not in str(error.value)


def test_damaged_clips_are_named(tmp_path):
    path = speech_commands(tmp_path) / "yes" / "00000001_nohash_0.wav"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"yes/00000001_nohash_0.wav is cut short"):
        SpeechCommands(path=tmp_path).read(FORM).test[0]
    root = esc50(tmp_path)
    (root / "audio" / "1-1000-A-0.wav").write_bytes(b"hello")
    with pytest.raises(UserError, match=r"1-1000-A-0.wav is not an audio file"):
        ESC50(path=root).read(FORM).test[0]


def test_speechcommands_with_a_word_that_is_only_tested(tmp_path):
    folder = speech_commands(tmp_path)
    lines = "".join(f"no/{speaker:08x}_nohash_0.wav\n" for speaker in range(1, 6))
    (folder / "testing_list.txt").write_text(lines)
    with pytest.raises(UserError, match="label 'no' is only in the validation list"):
        SpeechCommands(path=tmp_path).read(FORM)


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


@pytest.mark.parametrize("fold, following", [(1, 2), (4, 5), (5, 1)])
def test_esc50_is_tested_on_one_fold_and_validated_on_the_next(fold, following, tmp_path):
    data = ESC50(path=esc50(tmp_path), fold=fold).read(FORM)
    assert data.labels == ("dog", "rain") and len(data.train) == 6
    assert [path.name for path, _ in data.test.samples] == [f"{fold}-1000-A-0.wav", f"{fold}-1010-A-10.wav"]
    assert {path.name[0] for path, _ in data.validation.samples} == {str(following)}
    assert not {path.name[0] for path, _ in data.train.samples} & {str(fold), str(following)}
    assert data.note == f"Fold {fold} is the test split and fold {following} the validation split."
    sound, label = data.test[1]
    assert label == 1 and abs(len(sound) - 8000) <= 1


def test_esc50_mistakes(tmp_path):
    with pytest.raises(UserError, match=r"no .*meta/esc50.csv: fetch"):
        ESC50(path=tmp_path).read(FORM)
    root = esc50(tmp_path)
    with pytest.raises(UserError, match=r"no fold 6 \(--data.fold\), .* they are 1, 2, 3, 4, 5"):
        ESC50(path=root, fold=6).read(FORM)
    table = root / "meta" / "esc50.csv"
    rows = table.read_text()
    table.write_text(rows.replace("1-1000-A-0.wav,1,0,dog", "1-1000-A-0.wav,1,0,cat"))
    with pytest.raises(UserError, match=r"category 'cat' is only in fold 1 or 2, so it can't be learnt"):
        ESC50(path=root).read(FORM)
    table.write_text(rows)
    (root / "audio" / "1-1010-A-10.wav").unlink()
    with pytest.raises(UserError, match=r"row 2: there is no file .*1-1010-A-10.wav"):
        ESC50(path=root).read(FORM)


def test_dtmf_has_other_clips_for_validation_than_for_testing():
    data = DTMF(repeats=2).read(replace(FORM, sample_rate=8_000))
    assert [len(part) for part in data.parts().values()] == [10_000, 336, 672] and "random numbers" in data.note
    tested = {clip.waveform.tobytes() for clip in data.test.clips}
    assert not tested & {clip.waveform.tobytes() for clip in data.validation.clips}


def test_dtmf_comes_at_its_own_rate():
    with pytest.raises(UserError, match="made at 8000 Hz"):
        DTMF().read(FORM)
