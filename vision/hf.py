"""Stock ViTs of Hugging Face's transformers on our ViT, with equal outputs."""

import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from jaxtyping import Shaped
from torch import Tensor, nn

from core import Pair, UserError, convert, load, pair
from core.checkpoints.files import plain_state, read_state
from core.checkpoints.keys import unfilled, warn_of_new_head
from core.files import first_line
from core.models.hub import loader, local_folder, settings_folder
from core.models.stock import check_supported, stock_config

from .hf_families import Head, find_family, stock_processor
from .merging import with_key_biases
from .model import Preprocess, ViT, ViTConfig
from .resizing import changed, resize

NORMS = ("pooler.layernorm.", "post_layernorm.")  # after pooling
INTERPOLATION: dict[Any, Any] = {
    0: "nearest",
    1: "lanczos",
    2: "bilinear",
    3: "bicubic",
    4: "box",
    5: "hamming",
}  # Pillow's numbers
PROCESSORS = ("preprocessor_config.json", "processor_config.json")
"""How images are prepared, alone or together with how texts are."""
UNUSED = ("pooler.dense.", "decoder.", "text_model.", "text_projection.", "logit_scale", "logit_bias")
"""What keys of weights begin with that we have no use for: a pooler beside the class token, ViT-MAE's decoder, a text
tower."""


@loader
def from_hf(
    source: str | Path | nn.Module,
    *,
    processor: Any = None,
    image_size: Pair | None = None,
    patch_size: Pair | None = None,
    channels: int | None = None,
    classes: int | None = None,
) -> ViT:
    """Our ViT with the weights of a model of transformers: ViT, DeiT, DINOv2, DINOv3, BEiT, data2vec-vision, I-JEPA,
    ViT-MAE, CLIP, SigLIP, SigLIP 2 or AIMv2. SigLIP 2 NaFlex takes images of any size, alone or in a list.

    source: a name on the hub, a local directory, or a module in memory: the base model (`features` is its pooled
        output, the class token's where that is a pooler with weights of its own), a classifier, or a vision tower. Of
        a whole CLIP or SigLIP the vision tower is taken, of a ViT-MAE the encoder.
    processor: the image processor of a module in memory, if it is not the stock one; otherwise it is read too.
    image_size, patch_size, channels: resize what can be resized. The image size of DINOv2 and DINOv3 is by default that
        of their image processor.
    classes: a number of classes that differs from the checkpoint's gives a head initialised at random, with a warning.
    """
    stock, kind, weights, settings = read_source(source, processor)
    config, weights = read_stock(stock, kind, weights, settings)
    says_size = processor is not None or not isinstance(source, nn.Module)
    if image_size is None and says_size:
        rows, columns = preprocess(settings, pair(config.image_size))[1]
        if find_family(stock, kind)[0].any_size:
            image_size = rows if rows == columns else (rows, columns)
        elif (rows, columns) != pair(config.image_size):
            made, wide = pair(config.image_size)
            warnings.warn(
                f"The image processor makes images of {rows} x {columns} pixels, but the model is for {made} x {wide}, "
                f"and images are resized to those: give image_size={rows if rows == columns else (rows, columns)} for "
                "a model that takes what the processor makes.",
                stacklevel=3,
            )
    wanted = {"image_size": image_size, "patch_size": patch_size, "channels": channels, "classes": classes}
    new = changed(config, {name: value for name, value in wanted.items() if value is not None})
    weights = resize(weights, config, new)
    fresh = ()
    if new.classes != config.classes:
        if new.classes:
            warn_of_new_head(f"{config.classes} classes", f"{new.classes} classes")
        new, fresh = replace(new, labels=()), ("head.",)
    model = unfilled(lambda: ViT(new), fresh)
    load(model, weights, fresh=fresh, take=not isinstance(source, nn.Module))
    return model.eval()


def read_source(
    source: str | Path | nn.Module, processor: Any = None, check: Callable[[Any, str], Any] = find_family
) -> tuple[Any, str, Mapping[str, Any], Mapping[str, Any]]:
    """A config, the name of a class, weights and the settings of an image processor of transformers.

    What is not supported is refused before weights are downloaded. check: refuses a config and a class.
    """
    if isinstance(source, nn.Module):
        stock, kind = getattr(source, "config", None), type(source).__name__
        check(stock, kind)
        return stock, kind, source.state_dict(), (processor or stock_processor(stock, kind)).to_dict()
    try:
        from transformers import AutoConfig
    except ImportError:
        raise UserError("from_hf needs the transformers package: pip install transformers.") from None
    folder = settings_folder(source)
    stock, kind = stock_config(AutoConfig.from_pretrained, folder)
    check(stock, kind)
    config, settings = read_config(stock, kind), _read_processor(folder)
    preprocess(settings, pair(config.image_size))
    return stock, kind, plain_state(read_state(local_folder(source)), wanted=()), settings


def read_stock(
    stock: Any, kind: str, weights: Mapping[str, Any], settings: Mapping[str, Any]
) -> tuple[ViTConfig, dict[str, Shaped[Tensor, "..."]]]:
    """The config and the weights in our form of a config, a class, weights and image processor of transformers."""
    kind = kind or _shown_kind(weights)
    family, head = find_family(stock, kind)
    tower, config = getattr(stock, "vision_config", stock), read_config(stock, kind)
    plain = {key.removeprefix(family.prefix): tensor for key, tensor in weights.items()}
    plain = {key: tensor for key, tensor in plain.items() if not key.startswith(UNUSED) and tensor.numel()}
    if config.pool != "attention":  # SigLIP's classifier is saved with a pooler that it does not use
        plain = {key: tensor for key, tensor in plain.items() if not key.startswith("head.")}
    if not config.head_norm and not config.encoder.final_norm:  # CLIP's with a norm that it does not use
        plain = {key: tensor for key, tensor in plain.items() if not key.startswith("post_layernorm.")}
    if config.head_norm and not any(key.startswith(NORMS) for key in plain):  # a base model without its pooler
        config = replace(config, head_norm=False)
    converted = convert(with_key_biases(plain), family.keys(tower))
    if head == "projection":
        outputs = len(converted["head.weight"])
        converted["head.bias"] = converted["head.weight"].new_zeros(outputs)
        config = replace(config, classes=outputs)
    how, _ = preprocess(settings, pair(config.image_size))
    return replace(config, preprocess=how), converted


def _shown_kind(weights: Mapping[str, Any]) -> str:
    """What the name of a class would end with by its weights, where its config names none."""
    classifiers = {key.partition(".")[0] for key in weights if re.match(r"(cls_)?classifier\.", key)}
    ends = {"classifier": "ForImageClassification", "cls_classifier": "ForImageClassificationWithTeacher"}
    return next((ends[name] for name in classifiers), "")


def read_config(stock: Any, kind: str) -> ViTConfig:
    """Our config for that of a class of transformers, but for what its weights and its image processor say."""
    family, head = find_family(stock, kind)
    config = family.read(getattr(stock, "vision_config", stock), head)
    return config if head == "projection" else replace(config, **_classes(stock, head))


def _classes(stock: Any, head: Head) -> dict[str, Any]:
    if head == "none":
        return {"classes": 0}
    names, problem = stock.id2label, stock.problem_type
    several = problem == "multi_label_classification"
    is_known = several or problem in (None, "single_label_classification")
    check_supported(is_known or len(names) == 1, f"a {problem} of {len(names)} numbers")
    labels = tuple(str(names[number]) for number in sorted(names)) if several or len(names) > 1 else ()
    return {"classes": len(names), "labels": labels, "multilabel": several}


def _read_processor(folder: Path) -> dict[str, Any]:
    from transformers import AutoImageProcessor

    file = next((folder / name for name in PROCESSORS if (folder / name).is_file()), None)
    if file is None:
        raise UserError(
            f"{folder} has no {PROCESSORS[0]}, which says how images are prepared: copy it from the checkpoint that it "
            "was trained from."
        )
    try:
        return AutoImageProcessor.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False).to_dict()
    except Exception as error:
        raise UserError(f"transformers cannot read {file}: {first_line(error)}.") from None


def preprocess(settings: Mapping[str, Any], size: tuple[int, int]) -> tuple[Preprocess, tuple[int, int]]:
    """How an image processor of transformers prepares images, and their size then; size: that of the model."""
    resample, factor = settings.get("resample"), settings.get("rescale_factor")
    check_supported(bool(settings.get("do_resize")), "an image processor that does not resize")
    check_supported(resample in INTERPOLATION, f"resampling of kind {resample!r}")
    rescales = settings.get("do_rescale") and isinstance(factor, float) and abs(factor * 255 - 1) < 1e-6
    check_supported(bool(rescales), f"pixels that are rescaled by {factor if settings.get('do_rescale') else 1!r}")
    check_supported(settings.get("crop_pct") is None, "an image processor with a crop_pct")
    fits = {"height": size[0], "width": size[1]} if "max_num_patches" in settings else {}  # for images of native size
    resized, crop = fits or settings["size"], settings.get("crop_size")
    if not settings.get("do_center_crop"):
        crop = None
    shortest = resized.get("shortest_edge")
    check_supported(bool(shortest or resized.get("height")), f"images resized to {dict(resized)}")
    check_supported(not (shortest and resized.get("longest_edge")), f"images resized to {dict(resized)}")
    check_supported(bool(crop or not shortest), "an image processor that keeps the shape of images: one without a crop")
    sides = (shortest, shortest) if shortest else (resized["height"], resized["width"])
    final = (crop["height"], crop["width"]) if crop else size if shortest else sides
    check_supported(min(*sides, *final) > 0, f"images resized to {dict(resized)} and cropped to {final}")
    fractions = [part / whole for part, whole in zip(final, sides, strict=True)]
    check_supported(fractions[0] == fractions[1], f"images resized to {dict(resized)} and cropped to {final}")
    normalises = settings.get("do_normalize")
    return Preprocess(
        mean=tuple(map(float, settings["image_mean"])) if normalises else (0.0,),
        std=tuple(map(float, settings["image_std"])) if normalises else (1.0,),
        crop=fractions[0],
        crop_mode="center" if shortest else "squash",
        interpolation=INTERPOLATION[resample],
    ), final
