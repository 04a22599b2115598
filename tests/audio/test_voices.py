"""Synthetic voices say the names of classes, in the training split alone; and what is refused."""

import json
import sys
from dataclasses import replace
from io import BytesIO

import numpy as np
import pytest
import soundfile
import torch
from sklearn.linear_model import LogisticRegression
from spoken_samples import publish
from torchaudio.transforms import MelSpectrogram

from audio.datasets import Folder, Manifest
from audio.decoding import read_audio
from audio.spoken_digits import SpokenDigits
from audio.train import AUDIO, spoken_digits
from audio.voices import PITCHES, SPEEDS, Text, Voices, speak_names, spoken, spoken_part
from core import UserError
from core.experiments import train_command

pytestmark = pytest.mark.usefixtures("without_figures")

FORM = spoken_digits().model.audio_format
DIGITS = tuple("0123456789")


def contents(samples):
    return [path.read_bytes() for path, _ in samples]


def features(samples):
    """The mean spectrum of each third of a clip, without its loudness."""
    mel = MelSpectrogram(8000, n_fft=256, n_mels=20)
    found = []
    for path, _ in samples:
        spectrum = mel(read_audio(path, 8000)).add(1e-4).log()
        thirds = torch.stack([part.mean(1) for part in spectrum.tensor_split(3, dim=1)])
        found.append((thirds - thirds.mean()).flatten())
    return torch.stack(found).numpy()


def frequency(clip):
    """Of the voice in Hz: the strongest one of its autocorrelation between 60 and 400."""
    middle = clip[len(clip) // 2 :][:4000] - clip.mean()
    correlation = torch.fft.irfft(torch.fft.rfft(middle, n=8192).abs() ** 2)
    return 22050 / (55 + int(correlation[55:368].argmax()))


def test_words_are_recognised_across_voices():
    samples = speak_names(DIGITS, Voices(count=40, takes=1), 8000)
    x, y = features(samples), np.array([label for _, label in samples])
    known = np.arange(len(samples)) < 200  # of the first 20 voices
    fitted = LogisticRegression(max_iter=2000).fit(x[known], y[known])
    assert fitted.score(x[~known], y[~known]) > 0.6  # 0.77; by chance 0.1


def test_clips_are_the_same_each_time_and_fewer_voices_are_the_first_of_more():
    three = speak_names(DIGITS, Voices(count=3), 8000)
    assert contents(speak_names(DIGITS, Voices(count=2), 8000)) == contents(three)[:40]
    names = [str(path) for path, _ in three]
    assert len(set(names)) == len(set(contents(three))) == len({path.identity for path, _ in three}) == 60
    assert len({name.split(" by ")[1].split(",")[0] for name in names}) == 3
    assert names[0].startswith("'0") and [label for _, label in three[:4]] == [0, 0, 1, 1]


def test_pitch_speed_and_language_change_what_is_said():
    def said(*texts):
        return [speech.clip for speech in spoken([Text("seven", *text) for text in texts])]

    slow, fast = said(*(("gmw/en-US", 50, speed) for speed in SPEEDS))
    assert len(slow) > 1.4 * len(fast) and slow.abs().max() <= 1
    low, high = said(*(("gmw/en-US", pitch, 150) for pitch in PITCHES))
    assert frequency(low) < 0.8 * frequency(high)
    german, french = (speak_names(("7",), Voices(count=1, language=name), 22050)[0].path for name in ("de", "fr"))
    assert "gmw/de+" in str(german) and "roa/fr" in str(french) and german.read_bytes() != french.read_bytes()


def test_names_of_several_parts_differ_where_any_part_does():
    """eSpeak NG translates a part at a time, up to a comma or a full stop."""
    for names in (("no, thanks", "no, sir"), ("St. Louis", "St. Paul"), ("hello! world", "hello! there")):
        assert len(speak_names(names, Voices(count=1, takes=1), 8000)) == 2
    with pytest.raises(UserError, match=r"'no, two' and 'no, too' sound the same"):
        speak_names(("no, two", "no, too"), Voices(count=1, takes=1), 8000)


@pytest.mark.parametrize("language, word", [("ko", "하나"), ("eu", "bat"), ("qu", "huk")])
def test_languages_without_a_family_are_spoken(language, word):
    sample = speak_names((word,), Voices(count=1, takes=1, language=language), 8000)[0]
    assert f" by {language}+" in str(sample.path) and len(sample.path.read_bytes()) > 1000


@pytest.mark.parametrize("rate", [8000, 16000, 44100])
def test_clips_have_the_rate_of_the_model(rate):
    path, _ = speak_names(("three",), Voices(count=1, takes=1), rate)[0]
    assert 0.2 * rate < len(read_audio(path, rate)) < rate
    assert soundfile.info(BytesIO(path.read_bytes())).samplerate == rate


def test_classes_that_are_no_words_are_silent():
    names = ("yes", "unknown", "_")
    samples = speak_names(names, Voices(count=2, takes=1, silent=("unknown", "_")), 8000)
    assert [(str(path)[1:4], label) for path, label in samples] == [("yes", 0)] * 2


def test_silence_is_cut_off_at_both_ends():
    word = torch.ones(1000)
    clip = torch.cat([torch.zeros(5000), word, torch.full((3000,), 0.005), word, torch.zeros(9000)])
    assert torch.equal(spoken_part(clip, 8000), clip[5000 - 200 : 10000 + 400 - 1])
    assert torch.equal(spoken_part(word, 8000), word) and not len(spoken_part(torch.zeros(9), 8000))


def test_they_are_only_trained_on(tmp_path):
    published = publish(tmp_path)
    without = SpokenDigits(path=published, per_class=1).read(FORM)
    data = SpokenDigits(path=published, per_class=1, voices=Voices(count=2, takes=3)).read(FORM)
    assert (len(without.train), len(data.train)) == (10, 10 + 2 * 3 * 10)
    assert without.train.samples == data.train.samples[:10]
    assert without.validation.samples == data.validation.samples and without.test.samples == data.test.samples
    assert data.note == f"{without.note} 60 more training clips are the names of the classes in 2 synthetic voices."
    clip, label = data.train[-1]
    assert label == 9 and torch.equal(clip, read_audio(data.train.samples[-1].path, 8000))
    listed = SpokenDigits(path=published).named_samples(data)
    assert listed["train"][-1] == (str(data.train.samples[-1].path), "9") and len(listed["train"]) == 70


def folder_of(tmp_path, *names):
    for name in names:
        (tmp_path / "words" / name).mkdir(parents=True)
        for number in range(10):
            sound = np.random.default_rng(number).normal(0, 0.1, 2000)
            soundfile.write(tmp_path / "words" / name / f"{number}.wav", sound, 8000)
    return tmp_path / "words"


def test_a_folder_of_words_is_trained_with_them(tmp_path):
    folder = folder_of(tmp_path, "stop", "turn_left")
    data = Folder(path=folder, voices=Voices(count=1, takes=1)).read(FORM)
    assert [str(path).split(" by ")[0][1:-2] for path, _ in data.train.samples[-2:]] == ["stop", "turn left"]
    words = (
        "folder --data.path {} --data.voices.count 2 --model.size tiny --train.steps 2 --train.batch-size 4 --out {}"
    )
    out = tmp_path / "out"
    train_command(AUDIO, words.format(folder, out).split())
    assert "8 more training clips are the names" in json.loads((out / "summary.json").read_text())["splits"]


def test_what_is_refused(tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"has 87 voices of the language 'de', not 88 \(--data.voices.count\)"):
        speak_names(("ja",), Voices(count=88, language="de"), 8000)
    for language in ("xx", "", "../en"):
        with pytest.raises(UserError, match=r"does not speak the language .*\(--data.voices.language\): give a code"):
            speak_names(("ja",), Voices(count=1, language=language), 8000)
    with pytest.raises(UserError, match=r"class '___' cannot be spoken in the language 'en' .*: rename the class"):
        speak_names(("yes", "___"), Voices(count=1), 8000)
    with pytest.raises(UserError, match=r"'two' and 'too' sound the same in the language 'en' .*: rename one, or name"):
        speak_names(("one", "two", "too"), Voices(count=1), 8000)
    with pytest.raises(UserError, match=r"no class 'nil' \(--data.voices.silent\): they are yes, no"):
        speak_names(("yes", "no"), Voices(count=1, silent=("nil",)), 8000)
    with pytest.raises(UserError, match=r"would say 52,200 clips; at most are 50,000: lower --data.voices.count"):
        speak_names(DIGITS[:6], Voices(count=87, takes=100, language="de"), 8000)
    folder = folder_of(tmp_path, "a", "b")
    with pytest.raises(UserError, match=r"^'7,' by gmw/en.* is longer than the 0.07 s .* that the model takes"):
        SpokenDigits(path=publish(tmp_path / "real"), voices=Voices(count=1, silent=DIGITS[:7])).read(
            replace(FORM, longest=600)
        )
    table = folder / "list.csv"
    for kind in ({"multilabel": True}, {"target": "number"}):
        table.write_text("\n".join(["path,label", *(f"a/{number}.wav,{number % 3}" for number in range(10))]))
        with pytest.raises(UserError, match=r"each clip must have one class: leave --data.voices.count at 0"):
            Manifest(path=table, voices=Voices(count=1), **kind).read(FORM)
    with monkeypatch.context() as patch, pytest.raises(UserError, match=r"eSpeak NG failed, .* made \(.*Error: .*\)"):
        patch.setattr("audio.voices.installed", lambda: (tmp_path / "no.so", tmp_path))
        list(spoken([Text("yes", "en", 50, 150)]))
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    with pytest.raises(UserError, match=r'need the package espeakng-loader: pip install -e ".\[voices\]"'):
        speak_names(("yes",), Voices(count=1), 8000)
