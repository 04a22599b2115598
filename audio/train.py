"""Train an AST, or another model with --init: `python -m audio.train EXPERIMENT [options]`."""

import math
from dataclasses import field, replace
from functools import partial
from pathlib import Path
from typing import Any

import soundfile

from core import EncoderConfig, UserError, pair
from core.config import configclass
from core.data import DataSplits
from core.data.dataset import OneOf
from core.data.shards import ShardSamples
from core.experiments import Experiment, ExperimentTask, Modality, Panel, train_command
from core.experiments.adaptation import adaptation_task
from core.experiments.build import (
    Predictions,
    classification_task,
    config_to_train,
    masked_task,
    model_to_train,
    regression_task,
)
from core.experiments.probe import ProbeConfig
from core.files import filling
from core.models.targets import number_head
from core.objectives import LatentConfig, MaskedConfig
from core.training import TrainConfig
from core.training.loop import Fit

from .augment import Augment, make_mix
from .datasets import DTMF, ESC50, Folder, Manifest, Shards, SpeechCommands, Unlabelled
from .dtmf import SAMPLE_RATE
from .features import FeatureConfig, check_filters
from .looks import look_at
from .model import AST, ASTConfig
from .plots import attention_panel, levels_panel, masked_panel, neighbours_panel, predictions_panel
from .pretrained import load_pretrained
from .samples import collate
from .saved import ModelConfig
from .sizing import sizing
from .spoken_digits import SpokenDigits
from .teacher import load_teacher, load_token_teacher
from .voices import Voices
from .waveform import WaveformModel


@configclass
class AudioExperiment(Experiment):
    data: OneOf[DTMF | SpokenDigits | SpeechCommands | ESC50 | Folder | Manifest | Shards | Unlabelled] = field(
        default_factory=DTMF
    )
    model: ModelConfig = field(default_factory=ASTConfig)
    masked: MaskedConfig = field(default_factory=MaskedConfig)


@configclass
class AudioAdaptation(AudioExperiment):
    latent: LatentConfig = field(default_factory=LatentConfig)
    probe: ProbeConfig = field(default_factory=ProbeConfig)


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
    """The keypad tones without their keys: masked patches are predicted (masked autoencoding). Start others with
    --init."""
    start = dtmf()
    return replace(
        start,
        model=replace(start.model, patch_size=(8, 4), stride=(8, 4)),
        masked=MaskedConfig(ratio=0.6),
        train=replace(start.train, lr=2e-3, eval_every=500),
    )


def spoken_digits() -> AudioExperiment:
    """3,000 recordings of digits by six speakers (FSDD): the official test set, or a speaker held out by
    --data.speaker. 0.008 PFLOP, 5 minutes of one core; of four of the speakers 99.0 % of the test set, and 81.0 % of
    speakers held out (seed 0, November 2026, docs/results.md)."""
    return AudioExperiment(
        data=SpokenDigits(augment=Augment(speed=0.2, equalise=10.0, noise=10.0, mixup=1.0)),
        model=ASTConfig(
            sample_rate=8_000,
            trim=30.0,
            n_mels=40,
            max_frames=240,
            patch_size=(40, 4),
            stride=(40, 4),
            stem=(32, 64, 64),
            registers=0,
            class_token=False,
            pool="mean",
            freq_mask=10,
            time_mask=12,
            features=FeatureConfig(f_min=100.0, floor=40.0, centre=True, mean=0.0, std=1.5),
            encoder=EncoderConfig(dim=96, depth=3, heads=4, drop_path=0.1),
        ),
        train=TrainConfig(
            steps=1500,
            batch_size=64,
            optimizer="muon",
            lr=3e-3,
            warmup=100,
            label_smoothing=0.1,
            ema=0.995,
            eval_every=500,
        ),
    )


def spoken_digits_voices() -> AudioExperiment:
    """As spoken-digits, with 300 synthetic voices beside the speakers (espeakng-loader), a larger model, and test clips
    at three speeds: for a speaker who is held out by --data.speaker."""
    plain = spoken_digits()
    assert isinstance(plain.model, ASTConfig)
    return replace(
        plain,
        data=replace(plain.data, voices=Voices(count=300, takes=1)),
        model=replace(
            plain.model,
            speeds=(90, 110),
            # Pauses are silent in synthetic clips and not in recordings; with this floor they look the same.
            features=replace(plain.model.features, floor=30.0),
            encoder=replace(plain.model.encoder, dim=128, depth=4),
        ),
        train=replace(plain.train, steps=2000),
    )


def speechcommands() -> AudioExperiment:
    """105,829 spoken words of a second, 35 classes, official split (downloaded by torchaudio, 2.3 GB). 8.1 PFLOP, for a
    GPU; not run yet."""
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
    """2,000 environmental clips of 5 s in 50 classes and 5 folds, of which --data.fold is tested on. 5.7 PFLOP, for a
    GPU; not run yet."""
    return AudioExperiment(
        data=ESC50(augment=Augment(gain=6.0, noise=10.0, shift=0.5, mixup=0.5)),
        model=ASTConfig(
            max_frames=512,
            freq_mask=24,
            time_mask=96,
            encoder=EncoderConfig(dim=192, depth=12, heads=3, drop_path=0.1),
        ),
        train=TrainConfig(steps=6000, batch_size=48, lr=5e-4, warmup=500, label_smoothing=0.1),
    )


def folder() -> AudioExperiment:
    """Your own clips, one directory per class (or train/ and test/ with those inside): --data.path DIR."""
    return AudioExperiment(
        data=Folder(augment=Augment(gain=6.0, noise=10.0, shift=0.1)),
        model=ASTConfig(freq_mask=24, time_mask=96, encoder=EncoderConfig(drop_path=0.1)),
        train=TrainConfig(steps=10_000, batch_size=48, lr=5e-4, warmup=1000, label_smoothing=0.1),
        size="auto",
    )


def manifest() -> AudioExperiment:
    """Your own clips, listed in a CSV or JSONL file with path, label (several with --data.multilabel) and perhaps
    split: --data.path FILE."""
    start = folder()
    assert isinstance(start.data, Folder)
    return replace(start, data=Manifest(augment=start.data.augment))


def shards() -> AudioExperiment:
    """Your own clips in shards, written by `python -m core.experiments.shard`: --data.path DIR or an address."""
    start = folder()
    assert isinstance(start.data, Folder)
    return replace(start, data=Shards(augment=start.data.augment))


def adapt() -> AudioAdaptation:
    """Your own sounds without labels, to go on from a checkpoint (--init) or from random weights: --data.path DIR.

    With --distill.teacher MODEL nothing is masked, and the tokens of that model are learnt.
    """
    return AudioAdaptation(
        data=Unlabelled(),
        model=ASTConfig(stride=16),
        train=TrainConfig(steps=10_000, batch_size=32, lr=5e-4, warmup=500, betas=(0.9, 0.98)),
    )


OWN = ("dropout", "head_dropout", "freq_mask", "time_mask", "speeds")
"""Fields of the model's config that are not those of the model that a run starts from; of waveforms the first two."""


def make_task(experiment: AudioExperiment) -> ExperimentTask:
    start = None if experiment.init is None else load_pretrained(experiment.init)
    own = OWN if start is None or isinstance(start, AST) else OWN[:2]
    config: Any = config_to_train(start, experiment.model, own)
    if experiment.model.trim is not None:  # otherwise clips are read as those that the start was trained on
        config = replace(config, trim=experiment.model.trim)
    teacher = None
    if isinstance(experiment, AudioAdaptation):
        default = adapt().model if start is None else None
        teacher, config = load_token_teacher(experiment.distill.teacher, config, default)
    if start is None and not experiment.resume:  # a run that is resumed continues as it began
        check_filters(config.features, config.sample_rate, config.n_mels)
    data = experiment.data.read(config.audio_format)
    # Without padding each batch has a shape of its own, for which a compiled model would be compiled again.
    to_batch = partial(collate, padded=experiment.train.compile)
    common = {"samples": experiment.data.named_samples(data), "in_memory": experiment.data.in_memory}
    if isinstance(experiment, AudioAdaptation) or experiment.masked.ratio:
        if isinstance(start, WaveformModel):
            raise UserError(
                f"{experiment.init} takes waveforms, and each of its tokens sees the sound around it, so that masking "
                "tokens hides nothing: start from an AST."
            )
        config = replace(config, classes=0, labels=(), freq_mask=0, time_mask=0)
        model = model_to_train(AST, config, start)
        if isinstance(experiment, AudioAdaptation):
            return adaptation_task(
                model,
                experiment,
                data,
                to_batch,
                grid=model.embed.grid,
                features=AST.features,
                labelled=lambda path: (Folder if path.is_dir() else Manifest)(
                    path=path, seconds=getattr(experiment.data, "seconds", None)
                ).read(config.audio_format),
                neighbours=lambda indices, before, after: neighbours_panel(
                    model, [data.validation[index][0] for index in indices], before, after
                ),
                again=partial(make_task, experiment),
                teacher=teacher,
                **common,
            )
        return masked_task(
            model,
            experiment.masked,
            data,
            to_batch,
            masked_panel,
            grid=model.embed.grid,
            patch_values=math.prod(pair(config.patch_size)),
            **common,
        )
    if isinstance(experiment.data, DTMF):
        common |= {"plots": lambda fit: [noise_panel(fit, data)], "on_end": lambda run: save_samples(run, data)}
    # The options of a manifest state what its labels are, and the index of shards what theirs are.
    source = data.validation.samples if isinstance(experiment.data, Shards) else experiment.data
    if isinstance(source, Manifest | ShardSamples) and source.predicts_number:
        config = replace(config, **number_head([label for _, label in data.train.samples]))
        model = model_to_train(AST if start is None else type(start), config, start)
        return regression_task(model, data, collate=to_batch, **common)
    multilabel = isinstance(source, Manifest | ShardSamples) and source.multilabel
    config = replace(config, classes=len(data.labels), labels=data.labels, multilabel=multilabel)
    return classification_task(
        model_to_train(AST if start is None else type(start), config, start),
        data,
        to_batch,
        lambda predictions: plot_predictions(predictions, data),
        train=experiment.train,
        distill=experiment.distill,
        teacher=load_teacher(experiment.distill.teacher, config),
        multilabel=multilabel,
        look=lambda model, index: look_at("the model", model, data.test[index][0]),
        baseline=lambda: experiment.data.baseline(data),
        mix=make_mix(experiment.data.augment, config.classes),
        **common,
    )


def noise_panel(fit: Fit, data: DataSplits) -> Panel:
    targets, predicted = fit.results["targets"], fit.results["probabilities"].argmax(dim=-1)
    correct = {"AST": predicted == targets, "Goertzel": data.test.goertzel == targets}
    clips = data.test.clips
    return levels_panel(correct, [clip.level for clip in clips], [clip.noise for clip in clips])


def plot_predictions(predictions: Predictions, data: DataSplits) -> list[Panel]:
    model, labels = predictions.model, data.labels
    clips = [data.test[index][0] for index in predictions.indices]
    expected, predicted = predictions.expected(labels), predictions.predicted(labels)
    return [
        predictions_panel(model, clips, expected, predicted, predictions.correct.tolist()),
        attention_panel(model, clips[-6:]),
    ]


def save_samples(run: Path, data: DataSplits) -> None:
    """Write a few test clips as files, on which audio.predict can be tried."""
    names = {"*": "star", "#": "hash"}
    with filling(run / "samples") as folder:
        for clip in data.test.clips[:: len(data.test) // 12 + 5]:  # with this step, keys, noises and levels all vary
            name = f"{names.get(data.labels[clip.key], data.labels[clip.key])}-{clip.noise}{clip.level:+.0f}dB.wav"
            soundfile.write(folder / name, clip.waveform, SAMPLE_RATE)


AUDIO = Modality(
    name="audio",
    experiments=(
        dtmf,
        dtmf_mae,
        spoken_digits,
        spoken_digits_voices,
        speechcommands,
        esc50,
        folder,
        manifest,
        shards,
        adapt,
    ),
    task=make_task,
    sizing=sizing,
)

if __name__ == "__main__":
    train_command(AUDIO)
