"""The task of every modality's `adapt`: learn from unlabelled samples, by masked latent prediction or from a teacher's
tokens, and tell what it was worth."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from torch import Tensor

from ..data.splits import DataSplits
from ..errors import UserError
from ..objectives import LatentPrediction, MaskedLatents, TokenDistillation, TokenProjection
from ..objectives.latent import TokenModel
from ..objectives.objective import Batch
from ..objectives.patch_masking import WithMaskNoise, collate_with_mask_noise
from ..sparse.layout import Grid
from ..training.loop import Fit
from ..training.sampling import seeded
from .build import inner_model
from .features import Features, evenly_spaced, extract_features
from .probe import probing
from .report import Panel
from .task import ExperimentTask

SHOWN = 300  # validation samples among which the report shows neighbours

Neighbours = Callable[[list[int], Float[np.ndarray, "n d"], Float[np.ndarray, "n e"]], Panel]
"""A plot of some validation samples, given by their numbers, and their features before and after training."""


def adaptation_task(
    model: Any,
    experiment: Any,
    data: DataSplits,
    collate: Callable[[list], Batch],
    *,
    grid: Grid | Callable[[tuple], Grid],
    features: Features,
    labelled: Callable[[Path], DataSplits],
    neighbours: Neighbours,
    again: Callable[[], ExperimentTask],
    frame: tuple[int, int] = (0, 0),
    teacher: TokenModel | None = None,
    **options: Any,
) -> ExperimentTask:
    """The task of an experiment with the fields `latent`, `distill` and `probe`.

    model: a `TokenModel`. grid, frame: see `WithMaskNoise`. labelled: reads the data with classes that the model's
    `features` are probed on. again: makes this task again, with the model as it starts. teacher: whose tokens are to be
    learnt, instead of masked latent prediction. options: further fields of the task.
    """

    def features_inside(wrapper: Any, *inputs: Any) -> Float[Tensor, "b d"]:
        return features(wrapper.model, *inputs)

    def plot(fit: Fit) -> list[Panel]:
        with seeded(experiment.train.seed):
            start = again().model
        vectors = [
            extract_features(wrapper.to(fit.device), features_inside, data.validation, collate, SHOWN)[0]
            for wrapper in (start, fit.model)
        ]
        fit.model.cpu()
        return [neighbours(evenly_spaced(len(data.validation), SHOWN), *vectors)]

    _check_tune(model, experiment.tune)
    probe = experiment.probe
    measure = None
    if probe.path is not None:
        measure = probing(labelled(probe.path), collate, features_inside, probe)
    learning = (
        masked_latents(model, experiment, data, collate, grid, frame)
        if teacher is None
        else token_distillation(model, experiment, data, collate, teacher)
    )
    return ExperimentTask(
        **learning,
        tuned_part=inner_model,
        measure=measure,
        plots=plot,
        saved_part=inner_model,
        head=(),
        split_note=data.note,
        **options,
    )


def _check_tune(model: Any, tune: str) -> None:
    """Refuse adapters that stay beside the weights, from which alone fine-tuning starts."""
    shared = model.encoder.config.shared_groups is not None
    if tune in ("adapter", "prompt") or (tune == "lora" and shared):
        what = "a LoRA of a model whose layers share weights" if tune == "lora" else f"--tune {tune}"
        raise UserError(
            f"{what} stays beside the model's weights, from which fine-tuning could not start: choose --tune full"
            f"{'' if shared else ', lora'}, last:N or bitfit."
        )


def masked_latents(
    model: Any,
    experiment: Any,
    data: DataSplits,
    collate: Callable[[list], Batch],
    grid: Grid | Callable[[tuple], Grid],
    frame: tuple[int, int],
) -> dict[str, Any]:
    """The fields of a task that learns by masked latent prediction."""
    if experiment.train.shard:
        raise UserError("--train.shard cuts weights into parts, which a teacher cannot follow: leave it out.")
    config = experiment.latent
    splits = {
        name: WithMaskNoise(split, grid, config.block, fixed=name != "train", masks=config.masks, frame=frame)
        for name, split in data.parts().items()
    }
    return {
        **splits,
        "model": LatentPrediction(model, config, experiment.train.steps, spared=sum(frame)),
        "objective": MaskedLatents(config.summary),
        "collate": partial(collate_with_mask_noise, collate),
        "on_tuned": LatentPrediction.follow,
        "after_step": LatentPrediction.update,
    }


def token_distillation(
    model: Any, experiment: Any, data: DataSplits, collate: Callable[[list], Batch], teacher: TokenModel
) -> dict[str, Any]:
    """The fields of a task that learns the tokens of a teacher."""
    default = type(experiment)()
    if experiment.latent != default.latent:
        raise UserError("With --distill.teacher nothing is masked: leave out the options --latent.*.")
    if replace(experiment.distill, teacher=None) != default.distill:
        raise UserError("--distill.weight and --distill.temperature are for learning classes: leave them out.")
    return {
        **data.parts(),
        "model": TokenProjection(model, teacher.encoder.config.dim),
        "objective": TokenDistillation(teacher=teacher),
        "collate": collate,
        "on_tuned": TokenProjection.freeze_unused,
    }
