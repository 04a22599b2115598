"""Train on image, audio and word: `python -m examples.multimodal.train EXPERIMENT [options]`."""

from dataclasses import field, fields, replace
from functools import partial

from audio import ASTConfig, FeatureConfig
from audio.train import spoken_digits
from core import EncoderConfig, UserError
from core.config import configclass
from core.data.dataset import OneOf
from core.experiments import Experiment, ExperimentTask, Modality, Panel, train_command
from core.training import TrainConfig
from core.training.loop import Fit
from text import Tokenizer
from text.tokenizer import TokenizerConfig
from text.train import VOCABULARY
from vision import Preprocess

from .data import MultimodalData, MultimodalDataset, collate, drop_modalities, formats
from .digits import Digits
from .manifest import Manifest
from .model import AudioConfig, ContrastiveModel, FusedModel, ImageConfig, MultimodalConfig, TextConfig
from .objectives import FromAnySubset, JointSpace
from .pairs import PairsExperiment, pairs_task
from .plots import directions_panel, retrieval_panel, space_panel, subsets_panel
from .spoken import Spoken


@configclass
class MultimodalExperiment(Experiment):
    data: OneOf[Digits | Spoken | Manifest] = field(default_factory=Digits)
    model: MultimodalConfig = field(default_factory=MultimodalConfig)


def digits() -> MultimodalExperiment:
    """Handwritten digits, their keypad tones and their names in one space: minutes on two cores. Compare it with an
    encoder for each modality by --model.towers."""
    return MultimodalExperiment(
        train=TrainConfig(steps=800, batch_size=64, lr=2e-3, warmup=100, precision="fp32", eval_every=200)
    )


def spoken() -> MultimodalExperiment:
    """Handwritten digits, real recordings of them (--data.path: the Free Spoken Digit Dataset) and their names in one
    space. Test on a speaker who is not trained on by --data.speaker."""
    recipe = spoken_digits()
    sounds = recipe.model
    assert isinstance(sounds, ASTConfig)
    return MultimodalExperiment(
        data=Spoken(augment=recipe.data.augment),
        model=MultimodalConfig(
            audio=AudioConfig(**{each.name: getattr(sounds, each.name) for each in fields(AudioConfig)}),
            encoder=EncoderConfig(dim=96, depth=4, heads=4),
        ),
        train=TrainConfig(steps=800, batch_size=64, lr=2e-3, warmup=80, eval_every=400),
    )


def fused() -> MultimodalExperiment:
    """The digit from whatever is there of a noisy image, a noisy tone and a misspelt name, their tokens joined into
    one sequence. Compare it with one alone by --data.modalities image."""
    return MultimodalExperiment(
        data=Digits(image_noise=0.6, levels=(-12.0, 0.0), misspellings=3, modality_dropout=0.5),
        model=MultimodalConfig(classes=10),
        train=TrainConfig(steps=2800, batch_size=64, lr=2e-3, warmup=100, precision="fp32", eval_every=400),
    )


def manifest() -> MultimodalExperiment:
    """Your own: a CSV or JSONL file with two or three of image, audio (paths) and text in each row, and perhaps label
    and split: --data.path FILE."""
    return MultimodalExperiment(
        data=Manifest(seconds=10.0, tokenizer=TokenizerConfig(kind="bpe")),
        model=MultimodalConfig(
            joint_dim=256,
            image=ImageConfig(
                size=224,
                patch_size=16,
                stride=None,
                channels=3,
                preprocess=Preprocess(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
            ),
            audio=AudioConfig(
                sample_rate=16_000, n_mels=64, max_frames=1024, patch_size=16, stride=16, features=FeatureConfig()
            ),
            text=TextConfig(max_length=128),
            encoder=EncoderConfig(dim=256, depth=6, heads=4, drop_path=0.1),
        ),
        train=TrainConfig(steps=10_000, batch_size=128, accumulate=8, lr=5e-4, warmup=1000),
    )


def pairs() -> PairsExperiment:
    """CLIP or SigLIP on your own images and texts, in the columns image and text of a CSV or JSONL file: --init NAME
    --data.path FILE. Without --init a new model is trained."""
    return PairsExperiment(
        data=Manifest(modalities=("image", "text"), tokenizer=TokenizerConfig(kind="bpe")),
        train=TrainConfig(steps=1_000, batch_size=64, lr=1e-5, warmup=100),
    )


def make_task(experiment: MultimodalExperiment | PairsExperiment) -> ExperimentTask:
    if isinstance(experiment, PairsExperiment):
        return pairs_task(experiment)
    if experiment.init is not None:
        raise UserError("This experiment starts afresh: leave out --init, or start from two towers with `pairs`.")
    config, settings = experiment.model, experiment.data
    if not config.classes and len(settings.modalities) < 2:
        raise UserError("A joint space needs two modalities at least: add to --data.modalities.")
    tokenizer = None
    if experiment.resume and experiment.out is not None and (experiment.out / VOCABULARY).exists():
        tokenizer = Tokenizer.load(experiment.out / VOCABULARY, extend=False)  # the one that the run began with
    data = settings.read(formats(config), tokenizer)
    if config.classes and config.classes != data.things:
        raise UserError(
            f"The data show {data.things} things: give --model.classes {data.things}, or 0 for a joint space."
        )
    config = replace(config, text=replace(config.text, vocab_size=data.tokenizer.size))
    share = settings.modality_dropout if len(settings.modalities) > 1 else 0.0
    return ExperimentTask(
        model=FusedModel(config) if config.classes else ContrastiveModel(config),
        objective=FromAnySubset(modalities=settings.modalities) if config.classes else JointSpace(),
        **data.parts(),
        collate=partial(collate, pad=data.tokenizer.pad),
        mix=partial(drop_modalities, share=share) if share else None,
        in_memory=settings.in_memory,
        split_note=data.note,
        plots=lambda fit: make_plots(fit, data, settings),
        samples=data.samples,
        on_start=lambda run: data.tokenizer.save(run / VOCABULARY),
        on_save_model=lambda folder: data.tokenizer.save(folder / VOCABULARY),
    )


def make_plots(fit: Fit, data: MultimodalData, settings: MultimodalDataset) -> list[Panel]:
    if fit.model.config.classes:
        return [subsets_panel(fit.metrics, settings.modalities)]
    vectors, things = fit.results["vectors"], fit.results["targets"]
    return [
        directions_panel(vectors, things),
        space_panel(vectors, things),
        *retrieval_panel(fit.model, data, vectors, things),
    ]


MULTIMODAL = Modality(name="examples.multimodal", experiments=(digits, spoken, fused, manifest, pairs), task=make_task)

if __name__ == "__main__":
    train_command(MULTIMODAL)
