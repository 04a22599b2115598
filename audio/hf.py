"""Stock sound models of Hugging Face's transformers, and of a few authors, on our models, with equal outputs."""

from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from torch import nn

from core import Pair, UserError, convert, load
from core.checkpoints.files import plain_state, read_state
from core.checkpoints.keys import State, unfilled, warn_of_new_head
from core.files import first_line, read_json
from core.models.hub import loader, local_folder, read_settings, settings_folder
from core.models.stock import check_supported, stock_config

from .hf_families import Family, Head, find_family, resize
from .model import AST
from .published import is_published, read_published
from .saved import Model

CLASSIFIER = "classifier."  # what keys of a classifier begin with


@loader
def from_hf(
    source: str | Path | nn.Module,
    *,
    extractor: Any = None,
    max_frames: int | None = None,
    n_mels: int | None = None,
    stride: Pair | None = None,
    classes: int | None = None,
    mask_padding: bool | None = None,
    multilabel: bool | None = None,
) -> Model:
    """Our AST with the weights of an AST or Whisper of transformers, or our WaveformModel with those of a wav2vec 2.0,
    HuBERT, WavLM or data2vec-audio.

    source: a model's name on the Hugging Face hub, a local directory, or the module in memory: the base model
        (`features` is its pooled output, of Whisper and models of waveforms the mean of the last layer's) or the model
        for classification; of those for pre-training, CTC and transcription the encoder is taken. Also an AudioMAE, EAT
        or SSLAM as it was published: a file of weights, or a directory in timm's or EAT's own format (of a pre-trained
        AudioMAE `features` is the mean of its patches, of the others the class token).
    extractor: the feature extractor of a module in memory, if it is not the stock one; otherwise it is read too.
    max_frames, n_mels, stride: the positions are interpolated in time and frequency. Whisper takes fewer frames, with
        the first of its positions.
    classes: a number of classes that differs from the checkpoint's gives a head initialised at random, with a warning.
    mask_padding: stock weights of AST and Whisper were trained to attend to the padding up to max_frames (False, for
        equal outputs); True masks it, and a short clip is few tokens. Models of waveforms mask it everywhere, unless
        this is False: then what sees it in transformers does.
    multilabel: probabilities by sigmoid, as for AudioSet; by default as the checkpoint's problem_type says.
    """
    chosen = {
        "max_frames": max_frames,
        "n_mels": n_mels,
        "stride": stride,
        "classes": classes,
        "mask_padding": mask_padding,
        "multilabel": multilabel,
    }
    chosen = {name: value for name, value in chosen.items() if value is not None}
    if not isinstance(source, nn.Module) and is_published(source):
        return _of_published(source, extractor, chosen)
    try:
        import transformers
    except ImportError:
        raise UserError("from_hf needs the transformers package: pip install transformers.") from None
    stock: Any
    if isinstance(source, nn.Module):
        stock, kind, weights = getattr(source, "config", None), type(source).__name__, source.state_dict()
        family, head = find_family(stock, kind)
        config = read_config(family, head, stock, extractor or getattr(transformers, family.extractor)())
    else:
        folder = settings_folder(source)
        if is_published(folder):
            return _of_published(local_folder(source), extractor, chosen)
        stock, kind = stock_config(transformers.AutoConfig.from_pretrained, folder)
        family, head = find_family(stock, kind)
        extractor = extractor or read_extractor(folder, family.extractor)
        config = read_config(family, head, stock, extractor)
        weights = plain_state(read_state(local_folder(source)), wanted=())  # without prefixes of DDP or torch.compile
        if not kind and any(key.startswith(CLASSIFIER) for key in weights):
            head = "classes"
            config = read_config(family, head, stock, extractor)
    config, weights = read_weights(family, head, stock, config, weights)
    if foreign := [name for name in chosen if name not in {field.name for field in fields(config)}]:
        raise UserError(f"A model of type {stock.model_type} has no {' and no '.join(foreign)}.")
    is_module = isinstance(source, nn.Module)
    return _built(family.model, family.resize, config, weights, chosen, take=not is_module)


def _of_published(source: str | Path, extractor: Any, chosen: Mapping[str, Any]) -> AST:
    if extractor is not None:
        raise UserError(f"{source} is in a format whose clips are always prepared alike: leave out the extractor.")
    return _built(AST, resize, *read_published(source), chosen, take=True)


def _built(
    make: Callable[[Any], nn.Module],
    resize: Callable[[State, Any, Any], State],
    config: Any,
    weights: State,
    chosen: Mapping[str, Any],
    take: bool,
) -> Any:
    """A model with these weights, which are of `config`, where some of its fields are chosen; take: as for `load`."""
    new, fresh = replace(config, **chosen), ()
    weights = resize(weights, config, new)
    if new.classes != config.classes:
        if new.classes:
            warn_of_new_head(f"{config.classes} classes", f"{new.classes} classes")
        new, fresh = replace(new, labels=()), ("head.",)
    model = unfilled(lambda: make(new), fresh)
    load(model, weights, fresh=fresh, take=take)
    return model.eval()


def read_config(family: Family, head: Head, stock: Any, extractor: Any) -> Any:
    """Our config for a config and a feature extractor of transformers, but for the classes."""
    check_supported(head == "none" or stock.problem_type != "regression", "regression (problem_type)")
    return family.read(stock, extractor, head)


def read_weights(family: Family, head: Head, stock: Any, config: Any, weights: State) -> tuple[Any, State]:
    """Our config with the classes, and the weights in our form."""
    plain = {key.removeprefix(family.prefix): tensor for key, tensor in weights.items()}
    plain = {key: tensor for key, tensor in plain.items() if not key.startswith(family.unused)}
    converted = convert(plain, family.keys(stock))
    if head == "none":
        return replace(config, classes=0), converted
    # transformers counts only those classes that have names.
    count = len(converted["head.weight"]) if "head.weight" in converted else stock.num_labels
    names = stock.id2label or {}
    labels = tuple(names.get(number, f"LABEL_{number}") for number in range(count))
    multilabel = stock.problem_type == "multi_label_classification"
    return replace(config, classes=count, labels=labels, multilabel=multilabel), converted


def read_extractor(folder: Path, kind: str) -> Any:
    """The feature extractor in a directory, which must be of this class of transformers."""
    import transformers

    alone, together = folder / "preprocessor_config.json", folder / "processor_config.json"
    if alone.is_file():
        file, settings = alone, read_json(alone)
    else:
        file, settings = together, read_settings(together).get("feature_extractor")
    if not isinstance(settings, dict):
        raise UserError(
            f"{folder} has no preprocessor_config.json, which says how its clips are prepared: copy it from the "
            "checkpoint that it was trained from, or pass an extractor to from_hf."
        )
    wanted: Any = getattr(transformers, kind)
    if (given := settings.get("feature_extractor_type", kind)) != kind:
        raise UserError(f"{file} is of type {given}, not {kind}.")
    try:
        return wanted.from_dict(settings)
    except Exception as error:  # values of a wrong type raise many kinds
        raise UserError(f"transformers cannot read {file}: {first_line(error)}.") from None
