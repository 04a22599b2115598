"""Tasks that every modality builds in the same way: classification and masked autoencoding."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from jaxtyping import Bool, Float, Shaped
from torch import Tensor, nn

from ..data.splits import DataSplits
from ..errors import UserError
from ..explore import Look, Sample
from ..models.tuning import initial_config, initialize
from ..objectives import (
    Classification,
    Distillation,
    DistillConfig,
    MaskedAutoencoder,
    MaskedConfig,
    MaskedPatches,
    MultiLabel,
    Regression,
)
from ..objectives.classification import balanced_weights
from ..objectives.objective import Batch
from ..objectives.patch_masking import WithMaskNoise, collate_with_mask_noise
from ..sparse.layout import Grid
from ..training.balanced_order import class_numbers
from ..training.config import TrainConfig
from ..training.loop import Fit
from .features import evenly_spaced
from .plots import confusion_matrix, per_class_metrics, per_label_metrics, regression_panel
from .report import Panel
from .task import ExperimentTask

C = TypeVar("C")  # a model's config
M = TypeVar("M", bound=nn.Module)
EXPLORED = 4  # test samples


@dataclass(frozen=True)
class Predictions:
    """A trained classifier, and its predictions for the test samples that the report shows."""

    model: Any
    indices: list[int]
    targets: Shaped[Tensor, "n ..."]
    probabilities: Float[Tensor, "n classes"]

    @property
    def correct(self) -> Bool[Tensor, "n"]:
        return is_correct(self.targets, self.probabilities)

    def predicted(self, labels: Sequence[str]) -> list[str]:
        """The most probable class of each sample and its probability."""
        return [f"{labels[int(row.argmax())]} {float(row.max()):.0%}" for row in self.probabilities]

    def expected(self, labels: Sequence[str]) -> list[str]:
        """The class of each sample, or all of them."""
        classes = (
            [int(target)] if target.ndim == 0 else target.nonzero().flatten().tolist() for target in self.targets
        )
        return [" + ".join(labels[number] for number in numbers) for numbers in classes]


# --- Starting from a trained model ------------------------------------------------------------------------------------


def config_to_train(start: Any | None, config: C, own: Sequence[str]) -> C:
    """The config of the model to train: that of `start`, if there is one, but with the fields `own` of `config`."""
    return config if start is None else initial_config(start.config, config, own)


def model_to_train(kind: Callable[[C], M], config: C, start: nn.Module | None) -> M:
    """A new model, with the weights of `start` if there is one; the head is new."""
    model = kind(config)
    if start is not None:
        initialize(model, start)
    return model


# --- Tasks ------------------------------------------------------------------------------------------------------------


def classification_task(
    model: nn.Module,
    data: DataSplits,
    collate: Callable[[list], Batch],
    plot: Callable[[Predictions], list[Panel]],
    *,
    train: TrainConfig,
    distill: DistillConfig | None = None,
    teacher: nn.Module | None = None,
    multilabel: bool = False,
    shown: int = 24,
    look: Callable[[Any, int], Look] | None = None,
    plots: Callable[[Fit], list[Panel]] = lambda fit: [],
    **options: Any,
) -> ExperimentTask:
    """Learn the classes of samples.

    plot: of some predictions, the most confident mistakes first; there are `shown` of them. look: of the trained model
    and the number of a test sample, for the explorer. train: for its options of the loss. distill: how to learn from
    `teacher`, where there is one. plots: further ones, which come first in the report. options: further fields of the
    task.
    """

    if not data.labels:
        raise UserError("These data have no classes to be learnt: name data with labels, or learn from masked patches.")

    def all_plots(fit: Fit) -> list[Panel]:
        targets, probabilities = fit.results["targets"], fit.results["probabilities"]
        indices = samples_to_show(targets, probabilities, shown)
        panels = [*plots(fit), *plot(Predictions(fit.model, indices, targets[indices], probabilities[indices]))]
        if multilabel:
            panels.append(per_label_metrics(targets, probabilities, data.labels))
        else:
            predicted = probabilities.argmax(dim=1)
            panels.append(confusion_matrix(targets.numpy(), predicted.numpy(), data.labels))
            panels.append(per_class_metrics(targets.numpy(), predicted.numpy(), data.labels))
        return panels

    def looks(fit: Fit) -> list[Sample]:
        targets, probabilities = fit.results["targets"], fit.results["probabilities"]
        indices = samples_to_show(targets, probabilities, EXPLORED) if look is not None else []
        right = is_correct(targets, probabilities)
        return [
            Sample(f"test sample {index}{'' if right[index] else ' (a mistake)'}", [look(fit.model.eval(), index)])
            for index in indices
            if look is not None
        ]

    return ExperimentTask(
        model=model,
        objective=MultiLabel() if multilabel else classification_of(data, train, distill, teacher),
        **data.parts(),
        collate=collate,
        plots=all_plots,
        looks=looks,
        split_note=data.note,
        **options,
    )


def classification_of(
    data: DataSplits, train: TrainConfig, distill: DistillConfig | None = None, teacher: nn.Module | None = None
) -> Classification:
    """The objective that the options ask for."""
    weights = None
    if train.class_balance == "weights":
        weights = balanced_weights(class_numbers(data.train).tolist(), len(data.labels))
    options: Any = {"label_smoothing": train.label_smoothing, "binary": train.class_loss == "bce", "weights": weights}
    if distill is None or teacher is None:
        return Classification(**options)
    return Distillation(**options, teacher=teacher, share=distill.weight, temperature=distill.temperature)


def regression_task(
    model: Any, data: DataSplits, plots: Callable[[Fit], list[Panel]] = lambda fit: [], **options: Any
) -> ExperimentTask:
    """Learn the number of each sample.

    model: whose config has the mean and the standard deviation of those to learn from (`number_head`). plots: further
    ones for the report. options: further fields of the task.
    """
    return ExperimentTask(
        model=model,
        objective=Regression(mean=model.config.target_mean, std=model.config.target_std),
        **data.parts(),
        split_note=data.note,
        plots=lambda fit: [regression_panel(fit.results["targets"], fit.results["predictions"]), *plots(fit)],
        **options,
    )


def masked_task(
    model: Any,
    config: MaskedConfig,
    data: DataSplits,
    collate: Callable[[list], Batch],
    plot: Callable[[MaskedAutoencoder, WithMaskNoise], Panel],
    *,
    grid: Grid | Callable[[tuple], Grid],
    patch_values: int,
    **options: Any,
) -> ExperimentTask:
    """Pre-train a model as a masked autoencoder.

    model: a `PatchModel`. plot: of some test samples. grid: see `WithMaskNoise`.
    patch_values: the values of a patch. options: further fields of the task.
    """
    splits = {
        name: WithMaskNoise(split, grid, config.block, fixed=name != "train") for name, split in data.parts().items()
    }
    return ExperimentTask(
        model=MaskedAutoencoder(model, config, patch_values),
        objective=MaskedPatches(),
        **splits,
        collate=partial(collate_with_mask_noise, collate),
        plots=lambda fit: [plot(fit.model, splits["test"])],
        tuned_part=inner_model,
        on_tuned=MaskedAutoencoder.freeze_unused,
        saved_part=inner_model,
        head=(),
        split_note=data.note,
        **options,
    )


def inner_model(wrapper: Any) -> Any:
    """The model that is kept after pre-training."""
    return wrapper.model


# --- Samples for the report -------------------------------------------------------------------------------------------


def is_correct(targets: Shaped[Tensor, "n ..."], probabilities: Float[Tensor, "n classes"]) -> Bool[Tensor, "n"]:
    """Whether the most probable class is the target, or one of several targets."""
    predicted = probabilities.argmax(dim=1)
    return predicted == targets if targets.ndim == 1 else targets.gather(1, predicted[:, None])[:, 0] > 0.5


def samples_to_show(
    targets: Shaped[Tensor, "n ..."], probabilities: Float[Tensor, "n classes"], count: int
) -> list[int]:
    """Indices of about `count` samples: the most confident mistakes (at most a third), then evenly spaced samples."""
    target = targets if targets.ndim == 1 else targets.argmax(dim=1)
    wrong = (~is_correct(targets, probabilities)).nonzero().flatten()
    mistakes = wrong[probabilities[wrong, target[wrong]].argsort()][: count // 3].tolist()
    spaced = evenly_spaced(len(targets), count - len(mistakes))
    return [*mistakes, *(index for index in spaced if index not in mistakes)]
