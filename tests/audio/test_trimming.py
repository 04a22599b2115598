"""Pauses at the ends of clips: which are left out, and that all that reads files for a model leaves out the same."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from small_runs import CLIPS, FILES, SHORT

from audio import AST, ASTConfig, WaveformConfig, WaveformModel, predict, pretrained
from audio.clips import trimmed
from audio.datasets import DTMF, Folder
from audio.decoding import read_audio
from audio.samples import read_clip
from audio.sizing import sizing
from audio.teacher import load_teacher, load_token_teacher
from audio.train import AUDIO, folder
from core import EncoderConfig, UserError
from core.data.cache import DecodeCache
from core.experiments import train_command
from core.experiments.inputs import Input

pytestmark = pytest.mark.usefixtures("elsewhere")
RATE = 16_000
FORM = ASTConfig(trim=30.0).audio_format


def sound(*parts: tuple[float, float], seed: int = 0) -> torch.Tensor:
    """Noise in parts, each of some seconds and as many decibels."""
    generator = torch.Generator().manual_seed(seed)
    return torch.cat([torch.randn(round(s * RATE), generator=generator) * 10 ** (level / 20) for s, level in parts])


@pytest.mark.parametrize("level", [-240, -20, 0, 60, 180])
def test_pauses_at_the_ends_are_left_out_at_any_loudness(level):
    parts = [(0.3, -45), (0.2, 0), (0.4, -45), (0.1, -20), (0.5, -45)]
    whole = sound(*((seconds, level + each) for seconds, each in parts))
    found = trimmed(whole, FORM)
    assert torch.equal(found, whole[round(0.29 * RATE) : round(1.01 * RATE)])  # the pause within stays, and 10 ms
    assert torch.equal(trimmed(found, FORM), found)
    shifted = whole + 10 ** (level / 20)  # a constant is no sound
    assert torch.equal(trimmed(shifted, FORM), shifted[round(0.29 * RATE) : round(1.01 * RATE)])


def test_the_limit_is_in_decibels():
    clip = sound((0.3, -40), (0.2, 0), (0.3, -20))
    for limit, seconds in ((10.0, 0.22), (30.0, 0.51), (50.0, 0.8)):
        found = trimmed(clip, replace(FORM, trim=limit))
        assert len(found) == round(seconds * RATE)


@pytest.mark.parametrize("samples", [1, 159, 160, 161, 4_001])
def test_a_clip_without_pauses_stays_whole(samples):
    for clip in (sound((samples / RATE, 0)), torch.zeros(samples), 1e-30 * torch.ones(samples)):
        assert torch.equal(trimmed(clip, FORM), clip)
    broken = sound((samples / RATE, 0), (0.5, -60))
    broken[0] = torch.nan
    assert trimmed(broken, FORM).isnan().any()
    paused = sound((0.5, -60), (samples / RATE, 0), (0.5, -60))
    assert len(trimmed(paused, replace(FORM, trim=None))) == len(paused)


@pytest.fixture
def paused(clips) -> Path:
    """Two classes of short tones with pauses at their ends, in which there is a soft noise."""
    generator = np.random.default_rng(1)
    for file in clips.rglob("*.wav"):
        tone, rate = soundfile.read(file)
        pauses = (generator.normal(0, 1e-3, int(seconds * rate)) for seconds in generator.uniform(0.1, 0.3, 2))
        soundfile.write(file, np.concatenate([next(pauses), tone, next(pauses)]), rate)
    return clips


def test_all_that_reads_files_leaves_out_the_same(paused, tmp_path):
    file = paused / "high" / "0.wav"
    whole, expected = read_audio(file, RATE), trimmed(read_audio(file, RATE), FORM)
    assert len(whole) > len(expected) + 0.15 * RATE
    model = AST(ASTConfig(classes=2, trim=30.0, encoder=EncoderConfig(dim=8, depth=1, heads=1)))
    tuned = AST(replace(model.config, trim=None))
    assert torch.equal(pretrained.read(file, model), expected) and torch.equal(pretrained.read(file, tuned), whole)
    given = Input({}, file, "", "", file)
    predictor = predict.predictor_of(model, predict.Arguments(run=tmp_path))
    assert torch.equal(predictor.read(given), expected)
    for cache in (None, tmp_path / "cache", tmp_path / "cache"):  # the second time from the cache
        data = Folder(path=paused, cache=cache).read(FORM)
        read = {str(path): data.test[number][0] for number, (path, _) in enumerate(data.test.samples)}
        for path, clip in read.items():
            assert torch.equal(clip, trimmed(read_audio(Path(path), RATE), FORM))
    cache = DecodeCache(tmp_path / "cache")  # holds whole clips, whatever a model leaves out
    assert torch.equal(read_clip(file, replace(FORM, trim=None), cache), whole)
    assert torch.equal(read_clip(file, FORM, cache), expected)


def test_models_of_waveforms_trim_too(paused):
    sizes = {"conv_dims": (8,), "conv_kernels": (10,), "conv_strides": (320,), "position_groups": 1}
    config = WaveformConfig(trim=30.0, **sizes, encoder=EncoderConfig(dim=8, depth=1, heads=1, norm_order="post"))
    file = paused / "low" / "3.wav"
    assert torch.equal(pretrained.read(file, WaveformModel(config)), trimmed(read_audio(file, RATE), FORM))


@pytest.mark.usefixtures("without_figures")
def test_a_run_keeps_what_its_start_leaves_out_or_is_told_otherwise(paused):
    def train(*options):
        train_command(AUDIO, ["folder", "--data.path", str(paused), *map(str, options)])
        return AST.from_run(Path(options[-1])).config.trim

    assert train(*CLIPS, "--model.trim", "30", "--out", "runs/first") == 30.0
    assert json.loads(Path("runs/first/model/config.json").read_text())["trim"] == 30.0
    again = ["--init", "runs/first", "--model.time-mask", "8", *SHORT, *FILES]
    assert train(*again, "--out", "runs/again") == 30.0
    assert train(*again, "--model.trim", "40", "--out", "runs/other") == 40.0


def test_tones_that_are_made_on_the_fly_have_no_pauses():
    form = replace(FORM, sample_rate=8_000)
    clips = DTMF().read(form).test
    assert all(torch.equal(trimmed(clip, form), clip) for clip, _ in clips)


def test_a_teacher_hears_what_it_was_trained_on():
    model = AST(ASTConfig(classes=2, trim=30.0, labels=("a", "b"), encoder=EncoderConfig(dim=8, depth=1, heads=1)))
    model.save_pretrained("teacher")
    for load in (load_teacher, lambda source, config: load_token_teacher(source, config, None)):
        assert load("teacher", model.config) is not None
        with pytest.raises(UserError, match=r"reads clips with a trim of 30\.0, and the model with None: set --model"):
            load("teacher", replace(model.config, trim=None))


def test_sizes_follow_what_is_left(paused):
    """A clip of 0.2 to 0.4 s has pauses of 0.2 to 0.6 s at its ends."""
    usual = {}
    for trim in (None, 30.0):
        experiment = replace(folder(), data=Folder(path=paused))
        found = sizing(replace(experiment, model=replace(experiment.model, trim=trim)), ())
        usual[trim] = float(re.search(r"the usual one of (\S+) s at 16,000 Hz", found.what)[1])
    assert 0.2 < usual[30.0] < 0.45 < 0.5 < usual[None] < 1.0
