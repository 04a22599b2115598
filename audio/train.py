"""Train an AST: `python -m audio.train EXPERIMENT [options]`."""

import math
from dataclasses import field, replace
from functools import cache, partial
from pathlib import Path

import soundfile
import torch
from jaxtyping import Int
from torch import Tensor

from core import Classification, EncoderConfig, MultiLabel, pair
from core.config import configclass
from core.experiments import Experiment, ExperimentTask, Modality, Panel, train_command
from core.experiments.fixed import Samples, name_samples
from core.experiments.plots import confusion_matrix, per_class_metrics
from core.files import filling
from core.models.tuning import initial_config, initialize
from core.objectives import MaskedAutoencoder, MaskedConfig, MaskedPatches
from core.objectives.masked_autoencoder import check_full_tuning
from core.objectives.patch_masking import WithMaskNoise, collate_with_mask_noise
from core.training import TrainConfig
from core.training.loop import Fit

from .augment import Augment, make_mix
from .datasets import DataConfig, SoundData, collate, is_in_memory, read_data
from .dtmf import SAMPLE_RATE, goertzel_predictions
from .features import FeatureConfig, check_filters
from .model import AST, ASTConfig
from .plots import attention_panel, levels_panel, masked_panel, per_label_metrics, predictions_panel
from .pretrained import load_pretrained


@configclass
class AudioExperiment(Experiment):
    data: DataConfig = field(default_factory=DataConfig)
    model: ASTConfig = field(default_factory=ASTConfig)
    masked: MaskedConfig = field(default_factory=MaskedConfig)


def dtmf() -> AudioExperiment:
    """The 16 telephone keypad tones in white, pink and babble noise, made on the fly: a whole run in minutes."""
    return AudioExperiment(
        data=DataConfig(name="dtmf"),
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
        masked=MaskedConfig(ratio=0.6),
        train=replace(start.train, lr=2e-3, eval_every=500),
    )


def speechcommands() -> AudioExperiment:
    """105,829 spoken words of a second, 35 classes, official split (downloaded by torchaudio, 2.3 GB)."""
    return AudioExperiment(
        data=DataConfig(name="speechcommands", augment=Augment(gain=6.0, noise=5.0, shift=0.1)),
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
        data=DataConfig(name="esc50", augment=Augment(gain=6.0, noise=10.0, shift=0.5, mixup=0.5)),
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
        data=DataConfig(name="folder", augment=Augment(gain=6.0, noise=10.0, shift=0.1)),
        model=ASTConfig(freq_mask=24, time_mask=96, encoder=EncoderConfig(drop_path=0.1)),
        train=TrainConfig(steps=10_000, batch_size=48, lr=5e-4, warmup=1000, label_smoothing=0.1, eval_batch_size=64),
    )


def manifest() -> AudioExperiment:
    """Your own sounds, listed in a CSV or JSONL file with path, label (several with --data.multilabel) and perhaps
    split: --data.path FILE."""
    return replace(folder(), data=replace(folder().data, name="manifest"))


def make_task(experiment: AudioExperiment) -> ExperimentTask:
    config, start, multilabel = experiment.model, None, experiment.data.multilabel
    if experiment.init is not None:
        start = load_pretrained(experiment.init)
        config = initial_config(start.config, config, ("dropout", "head_dropout", "freq_mask", "time_mask"))
    elif not experiment.resume:  # a run goes on as it began
        check_filters(config.features, config.sample_rate, config.n_mels)
    data = read_data(experiment.data, config)
    if experiment.masked.ratio:
        return masked_task(experiment, replace(config, classes=0, labels=(), freq_mask=0, time_mask=0), start, data)
    config = replace(config, classes=len(data.labels), labels=data.labels, multilabel=multilabel)
    model = AST(config) if start is None else initialize(AST(config), start)
    smoothing = experiment.train.label_smoothing
    made = experiment.data.name == "dtmf"
    goertzel = cache(lambda: goertzel_predictions(data.test.clips))  # for the headline and for the panel
    return ExperimentTask(
        model=model,
        samples=named_samples(experiment.data, data),
        objective=MultiLabel() if multilabel else Classification(label_smoothing=smoothing),
        train=data.train,
        test=data.test,
        collate=collate,
        mix=make_mix(experiment.data.augment, config.classes),
        in_memory=is_in_memory(experiment.data),
        baseline=lambda: ("Goertzel", accuracy(goertzel(), data)) if made else None,
        plots=lambda found: [*(noise_panels(found, data, goertzel()) if made else []), *make_plots(found, data)],
        on_end=(lambda run: save_samples(run, data)) if made else lambda run: None,
    )


def masked_task(experiment: AudioExperiment, config: ASTConfig, start: AST | None, data: SoundData) -> ExperimentTask:
    check_full_tuning(experiment.tune)
    model = AST(config) if start is None else initialize(AST(config), start)
    grid, block = model.embed.grid, experiment.masked.block
    train = WithMaskNoise(data.train, grid, block, fixed=False)
    test = WithMaskNoise(data.test, grid, block, fixed=True)
    return ExperimentTask(
        samples=named_samples(experiment.data, data),
        model=MaskedAutoencoder(model, experiment.masked, math.prod(pair(config.patch_size))),
        objective=MaskedPatches(),
        train=train,
        test=test,
        collate=partial(collate_with_mask_noise, collate),
        in_memory=is_in_memory(experiment.data),
        plots=lambda found: [masked_panel(found.model, test)],
        saved_part=lambda model: model.model,
    )


def named_samples(config: DataConfig, data: SoundData) -> Samples:
    """The files that the data consist of; none for data that are always the same."""
    if config.name == "dtmf":
        return {}
    root = config.path or Path("data")
    root = root.parent if config.name == "manifest" else root
    return name_samples(root, data.labels, train=data.train.samples, test=data.test.samples)


def accuracy(predictions: Int[Tensor, "n"], data: SoundData) -> float:
    return (predictions == torch.tensor([clip.key for clip in data.test.clips])).float().mean().item()


def noise_panels(found: Fit, data: SoundData, goertzel: Int[Tensor, "n"]) -> list[Panel]:
    targets, predictions = found.results["targets"], found.results["probabilities"].argmax(dim=-1)
    right = {"AST": predictions == targets, "Goertzel": goertzel == targets}
    clips = data.test.clips
    return [levels_panel(right, [clip.level for clip in clips], [clip.noise for clip in clips])]


def make_plots(found: Fit, data: SoundData) -> list[Panel]:
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
        predictions_panel(model, clips, names, guesses, right[shown].tolist()),
        attention_panel(model, clips[-6:]),
    ]
    if targets.ndim == 1:
        panels.append(confusion_matrix(targets.numpy(), predictions.numpy(), labels))
        panels.append(per_class_metrics(targets.numpy(), predictions.numpy(), labels))
    else:
        panels.append(per_label_metrics(targets, chances, labels))
    return panels


def save_samples(run: Path, data: SoundData) -> None:
    """A few test clips as files, to try audio.predict on."""
    names = {"*": "star", "#": "hash"}
    with filling(run / "samples") as folder:
        for clip in data.test.clips[:: len(data.test) // 12 + 5]:  # a stride that keys, noises and levels all change by
            name = f"{names.get(data.labels[clip.key], data.labels[clip.key])}-{clip.noise}{clip.level:+.0f}dB.wav"
            soundfile.write(folder / name, clip.waveform, SAMPLE_RATE)


AUDIO = Modality(name="audio", experiments=(dtmf, dtmf_mae, speechcommands, esc50, folder, manifest), task=make_task)

if __name__ == "__main__":
    train_command(AUDIO)
