"""Train an AST: `python -m audio.train EXPERIMENT [options]`."""

import math
from dataclasses import field, replace
from functools import partial
from pathlib import Path

import soundfile

from core import Classification, EncoderConfig, MultiLabel, pair
from core.config import configclass
from core.data import DataSplits
from core.data.dataset import OneOf
from core.experiments import Experiment, Modality, Panel, Task, train_command
from core.experiments.plots import confusion, per_class
from core.files import filling
from core.models.tuning import start_from, started_config
from core.objectives.masked_patches import (
    MaskedAutoencoder,
    MaskedConfig,
    MaskedPatches,
    Noisy,
    check_whole,
    collate_noisy,
)
from core.training import TrainConfig
from core.training.loop import Fit

from .augment import Augment, make_mix
from .datasets import DTMF, ESC50, Folder, Manifest, SpeechCommands, collate
from .dtmf import SAMPLE_RATE
from .features import FeatureConfig, check_filters
from .model import AST, ASTConfig
from .plots import attention_panel, levels_panel, masked_panel, per_label, samples_panel
from .pretrained import load_pretrained


@configclass
class AudioExperiment(Experiment):
    data: OneOf[DTMF | SpeechCommands | ESC50 | Folder | Manifest] = field(default_factory=DTMF)
    model: ASTConfig = field(default_factory=ASTConfig)
    masked: MaskedConfig = field(default_factory=MaskedConfig)


def dtmf() -> AudioExperiment:
    """The 16 telephone keypad tones in white, pink and babble noise, made on the fly: a whole run in minutes."""
    return AudioExperiment(
        data=DTMF(),
        model=ASTConfig(
            sample_rate=8_000,
            n_mels=48,
            max_frames=32,
            patch_size=(48, 4),
            stride=(48, 1),
            features=FeatureConfig(frame_length=64.0, frame_shift=16.0, f_min=600.0, f_max=1800.0, mean=0.0, std=2.0),
            encoder=EncoderConfig(dim=96, depth=4, heads=4, mlp_dim=192),
        ),
        train=TrainConfig(steps=1500, batch_size=64, lr=1e-3, warmup=150, precision="fp32", eval_every=500),
    )


def dtmf_mae() -> AudioExperiment:
    """The keypad tones without their keys: hidden patches, told from the rest (masked autoencoding). Go on with
    --init."""
    start = dtmf()
    return replace(
        start,
        model=replace(start.model, patch_size=(8, 4), stride=(8, 4)),
        masked=MaskedConfig(share=0.6),
        train=replace(start.train, lr=2e-3, eval_every=500),
    )


def speechcommands() -> AudioExperiment:
    """105,829 spoken words of a second, 35 classes, official split (downloaded by torchaudio, 2.3 GB)."""
    return AudioExperiment(
        data=SpeechCommands(augment=Augment(gain=6.0, noise=5.0, shift=0.1)),
        model=ASTConfig(
            n_mels=64,
            max_frames=104,
            patch_size=(16, 8),
            stride=(12, 8),
            freq_mask=16,
            time_mask=16,
            encoder=EncoderConfig(dim=192, depth=12, heads=3, drop_path=0.1),
        ),
        train=TrainConfig(steps=30_000, batch_size=128, lr=1e-3, warmup=1000, eval_every=2000, save_every=2000),
    )


def esc50() -> AudioExperiment:
    """2,000 environmental sounds of 5 s in 50 classes and 5 folds, of which --data.fold is tested on."""
    return AudioExperiment(
        data=ESC50(augment=Augment(gain=6.0, noise=10.0, shift=0.5, mixup=0.5)),
        model=ASTConfig(
            max_frames=512,
            freq_mask=24,
            time_mask=96,
            encoder=EncoderConfig(dim=192, depth=12, heads=3, drop_path=0.1),
        ),
        train=TrainConfig(steps=6000, batch_size=48, lr=5e-4, warmup=500, label_smoothing=0.1, eval_batch_size=64),
    )


def folder() -> AudioExperiment:
    """Your own sounds, one directory per class (or train/ and test/ with those inside): --data.path DIR."""
    return AudioExperiment(
        data=Folder(augment=Augment(gain=6.0, noise=10.0, shift=0.1)),
        model=ASTConfig(freq_mask=24, time_mask=96, encoder=EncoderConfig(drop_path=0.1)),
        train=TrainConfig(steps=10_000, batch_size=48, lr=5e-4, warmup=1000, label_smoothing=0.1, eval_batch_size=64),
    )


def manifest() -> AudioExperiment:
    """Your own sounds, listed in a CSV or JSONL file with path, label (several with --data.multilabel) and perhaps
    split: --data.path FILE."""
    return replace(folder(), data=Manifest(augment=folder().data.augment))


def make_task(experiment: AudioExperiment) -> Task:
    config, start = experiment.model, None
    multilabel = isinstance(experiment.data, Manifest) and experiment.data.multilabel
    if experiment.init is not None:
        start = load_pretrained(experiment.init)
        config = started_config(start.config, config, ("dropout", "head_dropout", "freq_mask", "time_mask"))
    elif not experiment.resume:  # a run goes on as it began
        check_filters(config.features, config.sample_rate, config.n_mels)
    data = experiment.data.read(config.audio_format)
    if experiment.masked.share:
        return masked_task(experiment, replace(config, classes=0, labels=(), freq_mask=0, time_mask=0), start, data)
    config = replace(config, classes=len(data.labels), labels=data.labels, multilabel=multilabel)
    model = AST(config) if start is None else start_from(AST(config), start)
    smoothing = experiment.train.label_smoothing
    made = isinstance(experiment.data, DTMF)
    return Task(
        model=model,
        samples=experiment.data.named_samples(data),
        objective=MultiLabel() if multilabel else Classification(label_smoothing=smoothing),
        train=data.train,
        test=data.test,
        collate=collate,
        mix=make_mix(experiment.data.augment, config.classes),
        in_memory=experiment.data.in_memory,
        baseline=lambda: experiment.data.baseline(data),
        panels=lambda found: [*(noise_panels(found, data) if made else []), *report_panels(found, data)],
        finish=(lambda run: save_samples(run, data)) if made else lambda run: None,
    )


def masked_task(experiment: AudioExperiment, config: ASTConfig, start: AST | None, data: DataSplits) -> Task:
    check_whole(experiment.tune)
    model = AST(config) if start is None else start_from(AST(config), start)
    grid, block = model.embed.grid, experiment.masked.block
    train, test = Noisy(data.train, grid, block, fixed=False), Noisy(data.test, grid, block, fixed=True)
    return Task(
        samples=experiment.data.named_samples(data),
        model=MaskedAutoencoder(model, experiment.masked, math.prod(pair(config.patch_size))),
        objective=MaskedPatches(),
        train=train,
        test=test,
        collate=partial(collate_noisy, collate),
        in_memory=experiment.data.in_memory,
        panels=lambda found: [masked_panel(found.model, test)],
        kept=lambda model: model.model,
    )


def noise_panels(found: Fit, data: DataSplits) -> list[Panel]:
    targets, predictions = found.results["targets"], found.results["probabilities"].argmax(dim=-1)
    right = {"AST": predictions == targets, "Goertzel": data.test.goertzel == targets}
    clips = data.test.clips
    return [levels_panel(right, [clip.level for clip in clips], [clip.noise for clip in clips])]


def report_panels(found: Fit, data: DataSplits) -> list[Panel]:
    model, labels = found.model, data.labels
    targets, chances = found.results["targets"], found.results["probabilities"]
    predictions = chances.argmax(dim=-1)
    truth = targets if targets.ndim == 1 else targets.argmax(dim=-1)
    right = predictions == targets if targets.ndim == 1 else targets.gather(1, predictions[:, None])[:, 0] > 0.5
    # The surest mistakes first, then an even walk through the test set.
    wrong = (~right).nonzero().flatten()
    wrong = wrong[chances[wrong, truth[wrong]].argsort()][:8].tolist()
    walk = [int(i * len(targets) / 24) for i in range(24)]
    shown = [*wrong, *(i for i in dict.fromkeys(walk) if i not in wrong)][:24]
    clips = [data.test[i][0] for i in shown]
    names = [
        " + ".join(labels[c] for c in ([int(truth[i])] if targets.ndim == 1 else targets[i].nonzero().flatten()))
        for i in shown
    ]
    guesses = [f"{labels[predictions[i]]} {chances[i].max():.0%}" for i in shown]
    panels = [
        samples_panel(model, clips, names, guesses, right[shown].tolist()),
        attention_panel(model, clips[-6:]),
    ]
    if targets.ndim == 1:
        panels.append(confusion(targets.numpy(), predictions.numpy(), labels))
        panels.append(per_class(targets.numpy(), predictions.numpy(), labels))
    else:
        panels.append(per_label(targets, chances, labels))
    return panels


def save_samples(run: Path, data: DataSplits) -> None:
    """A few test clips as files, to try audio.predict on."""
    names = {"*": "star", "#": "hash"}
    with filling(run / "samples") as folder:
        for clip in data.test.clips[:: len(data.test) // 12 + 5]:  # a stride that keys, noises and levels all change by
            name = f"{names.get(data.labels[clip.key], data.labels[clip.key])}-{clip.noise}{clip.level:+.0f}dB.wav"
            soundfile.write(folder / name, clip.waveform, SAMPLE_RATE)


AUDIO = Modality(name="audio", experiments=(dtmf, dtmf_mae, speechcommands, esc50, folder, manifest), task=make_task)

if __name__ == "__main__":
    train_command(AUDIO)
