"""Spoken digits: read as published and as a table, split officially or by speaker, and what is refused."""

import pytest
import soundfile
from spoken_samples import publish, table_of

from audio.spoken_digits import SpokenDigits
from audio.train import spoken_digits
from core import UserError

FORM = spoken_digits().model.audio_format


@pytest.fixture
def published(tmp_path):
    return publish(tmp_path)


def named(part):
    return [path.stem.split("_") for path, _ in part]


def test_recordings_0_to_4_are_the_test_set(published):
    data = SpokenDigits(path=published).samples()
    assert [len(part) for part in data.parts().values()] == [50, 10, 150]
    assert {int(number) for *_, number in named(data.test)} == {0, 1, 2, 3, 4}
    assert {int(number) for *_, number in named([*data.train, *data.validation])} == {5, 6}
    for part in data.parts().values():
        assert all(data.labels[label] == path.stem[0] for path, label in part)
    assert data.note.startswith("The test split is the official one. Without a validation split of their own, 10 %")


def test_a_speaker_is_held_out(published):
    data = SpokenDigits(path=published, speaker="bob").samples()
    assert len(data.test) == 70 and {speaker for _, speaker, _ in named(data.test)} == {"bob"}
    assert {speaker for _, speaker, _ in named([*data.train, *data.validation])} == {"ann", "cy"}
    assert len(data.train) + len(data.validation) == 140 and "recordings of bob are the test split" in data.note


@pytest.mark.parametrize("speaker", ["", "cy"])
def test_a_table_and_either_folder_are_read_the_same(published, speaker):
    parts = [
        SpokenDigits(path=path, speaker=speaker).samples().parts()
        for path in (published, published / "recordings", table_of(published))
    ]
    assert parts[0] == parts[1] == parts[2]


def test_clips_are_read_for_the_recipe(published):
    data = SpokenDigits(path=published, augment=spoken_digits().data.augment).read(FORM)
    clip, label = data.train[0]
    assert clip.isfinite().all() and 0.75 * 1200 < len(clip) < 1.5 * 3000 and label == data.train.samples[0].label
    assert len(data.test[0][0]) == soundfile.info(data.test.samples[0][0]).frames


def test_mistakes(published, tmp_path):
    with pytest.raises(UserError, match=r"There is no .*nowhere: fetch https.* name it by --data.path"):
        SpokenDigits(path=tmp_path / "nowhere").samples()
    with pytest.raises(UserError, match=r"has no speaker 'bop' \(--data.speaker\): choose one of ann, bob, cy"):
        SpokenDigits(path=published, speaker="bop").samples()
    for row, message in (
        (("recordings/0_ann_0.wav", "ten", "test", "ann"), "row 211: the label must be a digit, not 'ten'"),
        (("recordings/0_ann_0.wav", "1", "half", "ann"), "row 211: the split must be train or test, not 'half'"),
        (("recordings/absent.wav", "1", "test", "ann"), "row 211: there is no file .*absent.wav"),
    ):
        with pytest.raises(UserError, match=message):
            SpokenDigits(path=table_of(published, [row])).samples()
    for file in (published / "recordings").glob("3_*"):
        file.unlink()
    with pytest.raises(UserError, match="no recording of the digit 3 to train on"):
        SpokenDigits(path=published).samples()
    (published / "recordings" / "three.wav").write_bytes(b"RIFF")
    with pytest.raises(UserError, match=r"three.wav is not named as a recording of this data set \(7_jackson_32.wav\)"):
        SpokenDigits(path=published).samples()


def test_only_later_recordings_need_a_speaker_to_test_on(published):
    for file in (published / "recordings").glob("*_[0-4].wav"):
        file.unlink()
    with pytest.raises(UserError, match=r"no recordings of the official test set .*: hold out a speaker"):
        SpokenDigits(path=published).samples()
    assert len(SpokenDigits(path=published, speaker="ann").samples().test) == 20


def test_the_real_recordings(real_data):
    folder = real_data("spoken-digits")
    official, held_out = (
        SpokenDigits(path=folder / "spoken-digits.csv", speaker=speaker).samples() for speaker in ("", "nicolas")
    )
    assert [len(part) for part in official.parts().values()] == [1620, 180, 200]
    assert [len(part) for part in held_out.parts().values()] == [1350, 150, 500]
    assert official == SpokenDigits(path=folder).samples()
