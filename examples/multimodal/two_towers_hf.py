"""CLIP and SigLIP of transformers on our two towers, with equal outputs."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from core import UserError, convert, load
from core.checkpoints.keys import unfilled
from core.models.hub import loader
from text import TextConfig
from text.towers import KEYS, clip_text, siglip_text
from vision.hf import read_source, read_stock

from .two_towers import TwoTowers, TwoTowersConfig

KINDS = {"clip": "CLIPModel", "siglip": "SiglipModel", "siglip2": "Siglip2Model"}
TEXT = ("text_model.", "text_projection.")  # what keys of the text tower begin with


@loader
def from_hf(source: str | Path | nn.Module, *, processor: Any = None, filler: int | None = None) -> TwoTowers:
    """The two towers of a CLIPModel, SiglipModel or Siglip2Model (NaFlex) of transformers.

    source: a name on the hub, a local directory, or a module in memory.
    processor: the image processor of a module in memory, if it is not the stock one; otherwise it is read.
    filler: the token id that SigLIP fills its texts up with, if it is not the config's padding token.
    """
    stock, kind, weights, settings = read_source(source, processor, _check)
    image, image_weights = read_stock(stock, kind or KINDS[stock.model_type], weights, settings)
    text_weights = {key.removeprefix(TEXT[0]): tensor for key, tensor in weights.items() if key.startswith(TEXT)}
    config = TwoTowersConfig(image=image, text=_text(stock, filler), sigmoid=_is_sigmoid(stock))
    take = not isinstance(source, nn.Module)
    return build(config, image_weights, convert(text_weights, KEYS), weights, take=take)


def build(
    config: TwoTowersConfig,
    image: Mapping[str, Tensor],
    text: Mapping[str, Tensor],
    whole: Mapping[str, Tensor],
    *,
    take: bool,
) -> TwoTowers:
    """The model with the weights of its towers, and the scale and the bias among those of the whole; take: as for
    `load`."""
    weights = {f"image.{key}": tensor for key, tensor in image.items()}
    weights |= {f"text.{key}": tensor for key, tensor in text.items()}
    model = unfilled(lambda: TwoTowers(config))
    own = model.state_dict()
    for ours, theirs in (("similarity.log_scale", "logit_scale"), ("similarity.bias", "logit_bias")):
        if theirs in whole and ours in own:
            weights[ours] = whole[theirs].reshape(())
    load(model, weights, take=take)
    return model.eval()


def _is_sigmoid(stock: Any) -> bool:
    return stock.model_type != "clip"


def _text(stock: Any, filler: int | None = None) -> TextConfig:
    own = stock.text_config
    return siglip_text(own, own.projection_size, filler) if _is_sigmoid(stock) else clip_text(own, stock.projection_dim)


def _check(stock: Any, kind: str) -> None:
    given = getattr(stock, "model_type", None)
    if given not in KINDS or (kind and kind != KINDS[given]):
        shown = f"{kind} ({given})" if kind else f"a model of type {given!r}"
        raise UserError(f"Two towers are read from a {' or '.join(KINDS.values())} of transformers, not from {shown}.")
    _text(stock)
