"""Images and their texts: training two towers on the user's own pairs, from CLIP, SigLIP or from random weights."""

from collections.abc import Sequence
from dataclasses import field, replace
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.data import DataLoader

from audio import ASTConfig
from core import Batch, EncoderConfig, UserError
from core.config import configclass
from core.experiments import Experiment, ExperimentTask, Panel
from core.training.loop import Fit
from text import TextConfig, Tokenizer
from text.train import VOCABULARY
from vision import ViTConfig

from .data import Formats, MultimodalData, Shown, collate
from .manifest import Manifest, Rows
from .plots import directions_panel, retrieval_panel, space_panel
from .pretrained import load_pretrained
from .two_towers import TwoTowers, TwoTowersConfig

MODALITIES = ("image", "text")
JOINT = 256  # features of the joint space of a new model

FRESH = TwoTowersConfig(
    image=ViTConfig(classes=JOINT, encoder=EncoderConfig(dim=JOINT, depth=6, heads=4, drop_path=0.1)),
    text=TextConfig(
        max_length=64, classes=JOINT, head_dense=False, pool="mean", encoder=EncoderConfig(dim=JOINT, depth=4, heads=4)
    ),
)


@configclass
class PairsExperiment(Experiment):
    data: Manifest = field(default_factory=Manifest)
    model: TwoTowersConfig = FRESH


def pairs_task(experiment: PairsExperiment) -> ExperimentTask:
    start, tokenizer = (None, None) if experiment.init is None else load_pretrained(experiment.init)
    config = experiment.model if start is None else start.config
    settings = experiment.data
    if set(settings.modalities) != set(MODALITIES):
        raise UserError(f"Two towers take images and texts: leave --data.modalities at {' '.join(MODALITIES)}.")
    if experiment.resume and experiment.out is not None and (experiment.out / VOCABULARY).exists():
        tokenizer = Tokenizer.load(experiment.out / VOCABULARY, extend=False)  # the one that the run began with
    formats = Formats(config.image.image_format, ASTConfig().audio_format, config.text.max_length)  # no clip is shown
    data = settings.read(formats, tokenizer)
    for rows in data.parts().values():
        _check_pairs(rows)
    model = start or TwoTowers(replace(config, text=replace(config.text, vocab_size=data.tokenizer.size)))
    return ExperimentTask(
        model=model,
        objective=model.objective,
        **data.parts(),
        collate=partial(collate_pairs, pad=data.tokenizer.pad),
        head=("image.head", "text.head", "similarity"),
        split_note=data.note,
        baseline=lambda: None if experiment.init is None else ("before training", _recall(experiment.init, data)),
        plots=lambda fit: make_plots(fit, data),
        samples=data.samples,
        on_start=lambda run: data.tokenizer.save(run / VOCABULARY),
        on_save_model=lambda folder: data.tokenizer.save(folder / VOCABULARY),
    )


def _check_pairs(rows: Rows) -> None:
    for where, row in rows.rows:
        for name in MODALITIES:
            if name not in row:
                raise UserError(f"{where} has no {name}: each row needs an image and a text.")


def collate_pairs(samples: Sequence[Shown], pad: int) -> Batch:
    """Images, token ids and their padding mask."""
    batch = collate(samples, pad)
    images, _, _, ids, real, _ = batch.inputs
    return Batch((images, ids, real), batch.targets)


@torch.no_grad()
def _recall(init: str, data: MultimodalData) -> float:
    """Of the test samples, with the model that the run started from."""
    model, _ = load_pretrained(init)
    batches = DataLoader(data.test, 32, collate_fn=partial(collate_pairs, pad=data.tokenizer.pad))
    found = [model.objective.evaluate(model, batch) for batch in batches]
    results = {name: torch.cat([each[name] for each in found]) for name in found[0]}
    return model.objective.metrics(results)["recall"]


def make_plots(fit: Fit, data: MultimodalData) -> list[Panel]:
    things, vectors = fit.results["targets"], _of_three(fit.results["vectors"], fit.model)
    return [
        directions_panel(vectors, things),
        space_panel(vectors, things),
        *retrieval_panel(fit.model, data, vectors, things),
    ]


def _of_three(vectors: Float[Tensor, "n 2 e"], model: nn.Module) -> Float[Tensor, "n 3 d"]:
    """The vectors as those of an image, a clip and a text, without the bias that SigLIP appends."""
    image, text = vectors[..., : model.width].unbind(dim=1)
    return torch.stack([image, torch.zeros_like(image), text], dim=1)
