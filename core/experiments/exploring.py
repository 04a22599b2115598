"""The explore commands share this: which models are looked at, the class that gradients are of, and the page."""

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import tyro
from jaxtyping import Float
from torch import Tensor

from ..config import Count, configclass
from ..encoder.surgery import sparsify
from ..errors import UserError
from ..explore import Look, Sample, write_page
from ..sparse import Pattern
from .cli import say
from .outputs import make_output_folder, most_probable, output_names, shown_classes

T = TypeVar("T")
Predictions = Callable[[Float[Tensor, "classes"]], tuple[int, Sequence[str], str]]
"""Of logits: the class that gradients are of, the most probable classes, and that class in words."""


@configclass
class ExploreArguments:
    """What the explore commands of all modalities have in common."""

    model: Annotated[str, tyro.conf.Positional]
    """A run's directory, or what --init takes: a directory of a stock model, or its name."""
    against: str | None = None
    """A second model, which is shown beside the first."""
    pattern: Pattern | None = None
    """A sparse pattern, such as 'Window2d(8)', for the second model; the same one as the first without --against."""
    target: str | None = None
    """The class that gradients are of, by its name or number; the most probable one by default."""
    layers: tuple[Count, ...] = ()
    """The only layers that the page holds, counted from 1; by default all, or as many as fit into 20 MB."""
    out: Path | None = None
    """The page; by default it is named after the first input, and overwrites no file."""


def compared(
    arguments: ExploreArguments, load: Callable[[str], T], model_of: Callable[[T], Any] = lambda loaded: loaded
) -> list[tuple[str, T]]:
    """The models that are looked at, each with its name. model_of: of what is loaded."""
    models = [(arguments.model, load(arguments.model))]
    if arguments.against is not None:
        models.append((arguments.against, load(arguments.against)))
    elif arguments.pattern is not None:
        models.append((arguments.model, copy.deepcopy(models[0][1])))
    names = [short_name(name) for name, _ in models]
    if arguments.against is not None and len(set(names)) < 2:
        names = [name for name, _ in models]
    if arguments.pattern is not None:
        sparsify(model_of(models[1][1]), arguments.pattern)
        names[1] = f"{names[1]}, {arguments.pattern}"
    return [(name, model) for name, (_, model) in zip(names, models, strict=True)]


def short_name(source: str) -> str:
    """What a model is called on the page: the last part of a directory's path, that has a name of its own."""
    path = Path(source)
    if not path.is_dir():
        return source
    path = path.resolve()
    return f"{path.parent.name}/{path.name}" if path.name == "model" else path.name


def predicted(
    config: Any, probabilities: Callable[[Float[Tensor, "b classes"]], Float[Tensor, "b classes"]], target: str | None
) -> Predictions | None:
    """What a model of this config predicts; None if it predicts no classes. target: see `ExploreArguments`."""
    if not config.classes or getattr(config, "predicts_number", False):
        return None
    labels = list(getattr(config, "labels", ()))

    def predictions(logits: Float[Tensor, "classes"]) -> tuple[int, Sequence[str], str]:
        number = int(logits.argmax()) if target is None else class_number(target, labels, config.classes)
        words = most_probable(probabilities(logits[None])[0], labels, shown_classes(None, config.classes))
        return number, words, labels[number] if labels else f"class {number}"

    return predictions


def class_number(target: str, labels: Sequence[str], classes: int) -> int:
    if target in labels:
        return labels.index(target)
    if target.isdecimal() and int(target) < classes:
        return int(target)
    named = f", such as {', '.join(labels[:3])}" if labels else ""
    raise UserError(
        f"--target {target} is no class of the model: name one{named}, or a number from 0 to {classes - 1}."
    )


def make_page(
    arguments: ExploreArguments, names: Sequence[str], looks: Sequence[Sequence[Look]], what: str, file: Path
) -> None:
    """Write the page, and say where it is.

    names, looks: of each sample. what: several of them are called. file: what the page is named after.
    """
    model, inputs = short_name(arguments.model), names[0] if len(names) == 1 else f"{len(names)} {what}"
    out = arguments.out
    if out is None:
        (out,) = output_names([file], Path(), ".html")
    else:
        make_output_folder(out.parent)
    if arguments.target is not None and not any(look.target for each in looks for look in each):
        raise UserError(f"--target {arguments.target}: no model predicts classes.")
    depth = min(len(look.layers) for each in looks for look in each)
    if arguments.layers and max(arguments.layers) > depth:
        raise UserError(f"--layers {max(arguments.layers)} is more than the {depth} layers of the model.")
    samples = [Sample(name, each) for name, each in zip(names, looks, strict=True)]
    write_page(out, f"Attention of {model} in {inputs}", samples, arguments.layers or None)
    say(f"{out}: open it in a browser ({out.stat().st_size / 1e6:.1f} MB)")
