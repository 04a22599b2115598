"""The embedded experiment: the clips are what they are said to be, and a short run beats its baseline."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from audio import dtmf
from audio.train import AUDIO
from core.experiments import train_command
from core.training.sampling import SeededDataset


@pytest.mark.parametrize("key", range(16))
def test_a_key_is_the_two_tones_of_q23(key):
    clip = dtmf.make_clip(np.random.default_rng(key), key, "white", 60.0)
    spectrum = np.abs(np.fft.rfft(clip.waveform, 80_000))  # 0.1 Hz a bin
    low, high = (spectrum[10 * a : 10 * b].argmax() / 10 + a for a, b in ((650, 1000), (1150, 1700)))
    row, column = divmod("123A456B789C*0#D".index(dtmf.KEYS[key]), 4)
    assert abs(low / (697, 770, 852, 941)[row] - 1) < 0.025  # 1.8 %, and what the window blurs
    assert abs(high / (1209, 1336, 1477, 1633)[column] - 1) < 0.025
    assert (
        0.2 * 8000 <= len(clip.waveform) <= 0.5 * 8000 and -30.1 <= 20 * np.log10(np.abs(clip.waveform).max()) <= -2.9
    )


@pytest.mark.parametrize("noise", dtmf.NOISES)
@pytest.mark.parametrize("level", [-10.0, 5.0])
def test_the_level_is_that_of_the_tones_over_the_noise(noise, level):
    """The same draws without noise to speak of give the tones; the difference is the noise."""
    for seed in range(5):
        noisy, clean = (dtmf.make_clip(np.random.default_rng(seed), 7, noise, x).waveform for x in (level, 100.0))
        scale = (noisy @ clean) / (clean @ clean)
        # What is left after the tones are taken out of the noisy clip is noise (chance leaves a little in common).
        rest, on = noisy - scale * clean, np.abs(clean) > 1e-3 * np.abs(clean).max()
        found = 10 * np.log10(np.square(scale * clean[on]).mean() / np.square(rest).mean())
        assert found == pytest.approx(level, abs=2.5)


def test_noises_have_their_colours():
    generator = np.random.default_rng(0)

    def share_below(noise, hertz):
        power = sum(np.abs(np.fft.rfft(dtmf.make_noise(generator, noise, 4000))) ** 2 for _ in range(40))
        return power[: int(hertz * 4000 / 8000)].sum() / power.sum()

    assert share_below("white", 1000) == pytest.approx(0.25, abs=0.03)
    assert 0.6 < share_below("pink", 1000) < 0.95 and share_below("babble", 1000) > 0.6


def test_training_clips_are_a_function_of_seed_epoch_and_index():
    clips = SeededDataset(dtmf.TrainClips(), 0)
    waveform, key = clips[(1, 5)]
    torch.rand(3), np.random.rand(3)
    again, same = clips[(1, 5)]
    assert key == same and torch.equal(waveform, again)
    others = [clips[(epoch, 5)][0] for epoch in (0, 2)] + [SeededDataset(dtmf.TrainClips(), 1)[(1, 5)][0]]
    assert all(len(other) != len(waveform) or not torch.equal(other, waveform) for other in others)
    assert {clips[(0, index)][1] for index in range(200)} == set(range(16))


def test_training_clips_do_not_depend_on_their_batch():
    clips = SeededDataset(dtmf.TrainClips(), 0)
    keys = [(1, index) for index in range(64)]
    batch = clips.__getitems__(keys)
    for key, (waveform, number) in zip(keys, batch, strict=True):
        alone, same = clips[key]
        assert number == same and torch.equal(waveform, alone)
    for index, (waveform, _) in zip(range(63, 0, -7), clips.__getitems__(keys[:0:-7]), strict=True):
        assert torch.equal(batch[index][0], waveform)


def test_training_clips_are_as_the_maker_says():
    """Their lengths and peaks, and each key the two tones of the standard; for any draws, the extreme ones too."""
    generator = np.random.default_rng(0)
    draws = generator.random((400, dtmf.TrainClips.draws))
    draws[0], draws[1] = 0, 1 - 2**-32
    draws[2:, 1] = 0  # white noise,
    draws[2:, 6] = 1  # 20 dB below the tones
    clips = dtmf.TrainClips().make(list(range(400)), draws)
    lengths = [len(waveform) for waveform, _ in clips]
    assert (min(lengths), max(lengths)) == (1600, 4000) and all(length % 80 == 0 for length in lengths)
    assert np.mean(lengths) == pytest.approx(2800, abs=150)
    peaks = np.array([20 * np.log10(np.abs(waveform.numpy()).max()) for waveform, _ in clips])
    assert peaks.min() > -30.01 and peaks.max() < -2.99 and np.mean(peaks) == pytest.approx(-16.5, abs=1.5)
    keys = [key for _, key in clips]
    assert np.bincount(keys, minlength=16).min() > 8
    assert sum(dtmf.goertzel(waveform.numpy(), [205]) == [key] for waveform, key in clips[2:]) > 390


def test_single_precision_makes_the_same_clips():
    """A clip made by itself in double precision, and among others, padded, in single."""
    clip = dtmf.make_clip(np.random.default_rng(4), 9, "pink", 0.0)
    generator = np.random.default_rng(4)  # the same draws, in the same order
    samples = 80 * int(generator.integers(20, 51))
    length = int(generator.uniform(0.05, 0.2) * 8000)
    start = generator.integers(samples - length + 1)
    off, phases = 1 + generator.uniform(-0.018, 0.018, 2), generator.uniform(0, 2 * np.pi, 2)
    twist, noise = generator.uniform(-8, 4), dtmf.make_noise(generator, "pink", samples)
    drawn = 9, start, length, off, phases, twist, 0.0, generator.uniform(-30, -3)
    press = dtmf.Press(*(np.array([value, value]) for value in drawn))
    padded = np.pad(noise, (0, 4000 - samples)).astype(np.float32)
    pair = dtmf.press_keys(press, np.stack([padded, padded]), np.array([samples, samples]), 1600)
    assert pair.dtype == clip.waveform.dtype == np.float32 and not pair[:, samples:].any()
    for waveform in pair:
        assert np.abs(waveform[:samples] - clip.waveform).max() < 1e-3 * np.abs(clip.waveform).max()


def test_recorded_noise_is_like_the_makers():
    """Shares of the power below 600 and 1,800 Hz, and how much of it comes in bursts, of many stretches of 0.35 s."""
    clips = dtmf.TrainClips()
    draws = np.random.default_rng(0).random((900, clips.draws))
    draws[:, 1] = np.arange(900) % 3 / 3 + 0.1
    draws[:, 2] = 0.5
    draws[:, 6] = -5.0  # 172 dB above the tones: nothing else is heard

    def properties(clips):
        power = sum(np.abs(np.fft.rfft(sound / np.sqrt(np.square(sound).mean()))) ** 2 for sound in clips)
        burst = np.mean([np.square(np.square(s)).mean() / np.square(s).mean() ** 2 for s in clips])
        return power[:210].sum() / power.sum(), power[:630].sum() / power.sum(), np.log(burst)

    recorded = [waveform.numpy().astype(float) for waveform, _ in clips.make(list(range(900)), draws)]
    assert {len(waveform) for waveform in recorded} == {2800}
    for number, noise in enumerate(dtmf.NOISES):
        generator = np.random.default_rng(1)
        made = [dtmf.make_noise(generator, noise, 2800) for _ in range(300)]
        assert properties(recorded[number::3]) == pytest.approx(properties(made), abs=0.06)


def test_the_test_set_is_fixed_and_even():
    np.random.seed(3)
    first, second = dtmf.TestClips(repeats=1), dtmf.TestClips(repeats=1)
    assert all(np.array_equal(a.waveform, b.waveform) for a, b in zip(first.clips, second.clips, strict=True))
    loudness = {i: np.abs(first.clips[i].waveform).sum() for i in (0, 100, 200, 335)}
    assert loudness == pytest.approx({0: 123.57674, 100: 54.671470, 200: 49.951988, 335: 381.83917}, rel=1e-5)
    conditions = {(c.key, c.noise, c.level) for c in first.clips}
    assert len(first) == len(conditions) == 16 * 3 * 7


def test_goertzel_is_a_fair_baseline():
    """Faultless where the tones stand out of white noise, and its energies are Goertzel's own."""
    generator = np.random.default_rng(5)
    clips = [dtmf.make_clip(generator, key, "white", 10.0) for key in range(16)]
    assert all(dtmf.goertzel(clip.waveform, [205]) == [clip.key] for clip in clips)
    waveform, w = clips[0].waveform[:205].astype(float), 2 * np.pi * 770 / 8000
    before = now = 0.0
    for sample in waveform:  # the recursion
        before, now = now, sample + 2 * np.cos(w) * now - before
    energy = now**2 + before**2 - 2 * np.cos(w) * now * before
    assert energy == pytest.approx(np.abs(waveform @ np.exp(-1j * w * np.arange(205))) ** 2)
    hard = [dtmf.make_clip(generator, number % 16, "white", -5.0) for number in range(48)]
    assert sum(dtmf.goertzel(clip.waveform, [205]) == [clip.key] for clip in hard) > 36


@pytest.mark.usefixtures("as_in_production")
def test_a_short_run_learns(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    short = ["--train.steps", "200", "--train.batch-size", "32", "--train.warmup", "40", "--train.lr", "2e-3"]
    train_command(AUDIO, ["dtmf", *short, "--model.depth", "2", "--data.repeats", "6"])
    summary = json.loads(Path("runs/dtmf/summary.json").read_text())
    assert 0.8 <= summary["baseline"]["Goertzel"] <= 0.97
    assert summary["metrics"]["accuracy"] >= 0.93
    said = capsys.readouterr().out
    assert f"accuracy {summary['metrics']['accuracy']:.2%} (95 % interval" in said and "; Goertzel: " in said
    page = Path("runs/dtmf/report.html").read_text()
    assert "Accuracy against noise" in page and "AST: -10 dB" in page and page.count("<svg") == 6
    assert len(list(Path("runs/dtmf/samples").glob("*.wav"))) >= 12
