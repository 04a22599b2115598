"""The settings that a user leaves open: they follow the data (`--size`), and the number of steps."""

import os
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar

from ..errors import UserError
from ..training.processes import chosen_device
from .config import Experiment
from .sizes import FEW, MOST_EPOCHS, SIZES, Size, SizeName, chosen_size, operations, schedule

C = TypeVar("C", bound=Any)
E = TypeVar("E", bound=Experiment)
Settings = Mapping[str, Any]
"""Values of settings by their dotted names: train.steps."""
FOLLOWING = ("warmup", "eval_every", "save_every")  # the number of steps
SELDOM = 10  # steps between evaluations, at least


@dataclass(frozen=True)
class Sizing:
    """What a modality says of the data of an experiment, and what it makes of a size."""

    samples: int
    """Training samples."""
    what: str
    """What they are, for messages: "images, usually of 32 px"."""
    settings: Callable[[Size | None], Settings]
    """The model and the changes of the data for a size; with None, beside the model that training starts from."""
    tokens: Callable[[Any], int]
    """Of a usual sample, by the config of a model."""
    most_epochs: int = MOST_EPOCHS
    """After which samples like these are only learnt by heart."""
    start: Any = None
    """Config of the model that training starts from."""


def settle(
    experiment: E, default: Experiment, given: Collection[str], sizing: Callable[[E, Collection[str]], Sizing] | None
) -> tuple[E, str]:
    """The experiment with the settings that are not given, and a sentence about what the data decided.

    default: the experiment without options. given: the names of the fields that options set. sizing: reads the data.
    """
    name = experiment.size
    if experiment.resume:  # it continues as it began
        return experiment, ""
    if name is None:
        return following_steps(experiment, default, given), ""
    if default.size is None or sizing is None:
        if name == "auto":
            raise UserError("--size auto is for your own data: here choose tiny, small or base, or leave it out.")
        if experiment.init is not None:
            raise UserError("--size has no effect beside --init, whose model is taken: leave it out.")
        experiment = following_steps(experiment, default, given)
        return with_settings(experiment, shape(experiment, SIZES[name]), given), ""
    if experiment.init is not None and name != "auto":
        raise UserError(f"--size {name} has no effect beside --init, whose model is taken: leave it out.")
    return _fitted(experiment, name, given, sizing(experiment, given))


def _fitted(experiment: E, name: Literal["auto"] | SizeName, given: Collection[str], found: Sizing) -> tuple[E, str]:
    device: Any = chosen_device(experiment.train.device)
    if found.start is not None:
        size, tuned = None, "part" if experiment.tune in ("head", "lora", "adapter", "prompt", "bitfit") else "all"
        fitted = with_settings(experiment, found.settings(None), given)
        config = found.start
    else:
        tuned = "none"
        shaped = {
            name: with_settings(experiment, {**shape(experiment, size), **found.settings(size)}, given)
            for name, size in SIZES.items()
        }
        costs: Any = {
            name: operations(each.model.encoder.dim, each.model.encoder.depth, found.tokens(each.model))
            for name, each in shaped.items()
        }
        size = chosen_size(found.samples, costs, device) if name == "auto" else SIZES[name]
        fitted = shaped[size.name]
        config = fitted.model
    train, encoder, tokens = experiment.train, config.encoder, max(found.tokens(config), 1)
    by_tokens = None if train.tokens_per_batch is None else max(train.tokens_per_batch // tokens, 1)
    plan = schedule(
        found.samples,
        tokens,
        encoder.dim,
        encoder.depth,
        device,
        start=tuned,
        most_epochs=found.most_epochs,
        steps=train.steps if "train.steps" in given else None,
        batch=train.batch_size if "train.batch_size" in given else by_tokens,
        accumulate=train.accumulate if "train.accumulate" in given else None if by_tokens is None else 1,
        processes=int(os.environ.get("WORLD_SIZE", 1)),
        repeats=train.repeats,
    )
    settings = {
        "train.steps": plan.steps,
        **({"train.batch_size": plan.batch_size} if by_tokens is None else {}),
        "train.accumulate": plan.accumulate,
        "train.lr": max(plan.lr, train.min_lr),
        "train.warmup": plan.warmup,
        "train.eval_every": max(plan.every, min(SELDOM, plan.steps)),
        "train.save_every": max(plan.every, min(SELDOM, plan.steps)),
    }
    fitted = with_settings(fitted, settings, given)
    epochs = plan.steps * plan.batch_size / found.samples
    model = f"a {size.name} model" if size is not None else f"the model of {experiment.init}"
    said = (
        f"Sized by {found.samples:,} training {found.what}, on {device}: {model} (width {encoder.dim}, {encoder.depth} "
        f"layers, {tokens} tokens a sample), {plan.steps:,} steps of {plan.batch_size} ({epochs:.3g} epochs), learning "
        f"rate {fitted.train.lr:g}."
    )
    if size is not None and found.samples < FEW:
        said += f" With fewer than {FEW:,} samples it usually helps to start from a trained model: name one by --init."
    return fitted, said


def shape(experiment: Experiment, size: Size) -> Settings:
    """The settings of an encoder of this size."""
    if not hasattr(experiment.model, "encoder"):
        raise UserError(f"--size has no effect on a {type(experiment.model).__name__}: leave it out.")
    return {
        "model.encoder.dim": size.dim,
        "model.encoder.depth": size.depth,
        "model.encoder.heads": size.heads,
        "model.encoder.mlp_dim": None,
    }


def following_steps(experiment: E, default: Experiment, given: Iterable[str]) -> E:
    """With warm-up, evaluations and checkpoints at the same parts of a training whose number of steps is given."""
    now, usual = experiment.train, default.train
    if "train.steps" not in given or now.steps == usual.steps:
        return experiment
    least = {"warmup": 0, "eval_every": min(SELDOM, now.steps), "save_every": min(SELDOM, now.steps)}
    scaled = {
        f"train.{name}": max(round(getattr(usual, name) * now.steps / usual.steps), least[name]) for name in FOLLOWING
    }
    return with_settings(experiment, scaled, given)


def with_settings(config: C, settings: Settings, given: Iterable[str] = ()) -> C:
    """A config with other values, but for the names that are given."""
    return _changed(config, {name: value for name, value in settings.items() if name not in given})


def _changed(config: C, settings: Settings) -> C:
    own: dict[str, Any] = {}
    inner: dict[str, dict[str, Any]] = {}
    for name, value in settings.items():
        first, _, rest = name.partition(".")
        if rest:
            inner.setdefault(first, {})[rest] = value
        else:
            own[first] = value
    return replace(config, **own, **{name: _changed(getattr(config, name), part) for name, part in inner.items()})
