"""ViT-MAE of transformers whole: encoder and decoder on our masked autoencoder, with equal reconstructions."""

import re
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Shaped
from torch import Tensor, nn

from core import Move, UserError, convert, load, pair, patch_grid, sincos_positions
from core.checkpoints.keys import KeyMap
from core.models.hub import loader
from core.models.stock import check_supported
from core.objectives.masked_autoencoder import MaskedAutoencoder, MaskedConfig

from .hf import read_source, read_stock
from .hf_keys import layer_keys
from .model import ViT, ViTConfig

LAYERS = ("decoder.decoder_layers.{i}", "decoder.decoder_encoder.layer.{i}")
"""Names of the decoder's layers in modules and in checkpoints."""
INTO_TOKENS = r"decoder\.embed\.\w+|decoder\.mask_token|decoder\..*(_norm|\.out|mlp\.down)\.\w+"
FROM_TOKENS = r"head\.weight|decoder\..*(qkv|mlp\.up)\.weight"


@loader
def masked_autoencoder_from_hf(source: str | Path | nn.Module, *, processor: Any = None) -> MaskedAutoencoder:
    """Our masked autoencoder with the weights of transformers' ViTMAEForPreTraining, to go on with pre-training.

    source: a name on the hub, a local directory, or a module in memory. processor: as for `from_hf`.
    """
    stock, kind, weights, settings = read_source(source, processor)
    if kind != "ViTMAEForPreTraining":
        raise UserError(f"masked_autoencoder_from_hf takes transformers' ViTMAEForPreTraining, not {kind or 'this'}.")
    config, encoder = read_stock(stock, kind, weights, settings)
    width, patch = stock.decoder_hidden_size, pair(config.patch_size)
    check_supported(stock.decoder_intermediate_size == 4 * width, "a decoder whose MLP is not 4 times as wide")
    check_supported(stock.hidden_act == "gelu", f"a decoder with activation {stock.hidden_act!r}")
    check_supported(bool(stock.qkv_bias), "a decoder without biases of attention")
    decoder = {key: tensor for key, tensor in weights.items() if key.startswith("decoder.")}
    _check_positions(decoder.pop("decoder.decoder_pos_embed", None), config, width)
    masked = MaskedConfig(
        ratio=float(stock.mask_ratio),
        normalise=stock.norm_pix_loss,
        dim=width,
        depth=stock.decoder_num_hidden_layers,
        heads=stock.decoder_num_attention_heads,
    )
    vit: Any = ViT(config)
    model = MaskedAutoencoder(vit, masked, config.channels * patch[0] * patch[1])
    decoder = convert(decoder, _keys(config.channels, patch))
    ours = {key: _with_rows_first(key, tensor) for key, tensor in decoder.items()}
    both = {**{f"model.{key}": tensor for key, tensor in encoder.items()}, **ours}
    load(model, both, take=not isinstance(source, nn.Module))
    return model.eval()


def _keys(channels: int, patch: tuple[int, int]) -> KeyMap:
    def channels_first(table: Shaped[Tensor, "..."]) -> Shaped[Tensor, "..."]:
        """transformers has a patch's pixels by row, column and channel, we by channel, row and column."""
        return table.unflatten(0, (*patch, channels)).movedim(2, 0).flatten(0, 2)

    return {
        "decoder.mask_token": Move("decoder.mask_token", lambda token: token[0, 0]),
        "decoder.decoder_embed.{p}": "decoder.embed.{p}",
        **{source: f"decoder.{target}" for layer in LAYERS for source, target in layer_keys(layer).items()},
        "decoder.decoder_norm.{p}": "decoder.encoder.final_norm.{p}",
        "decoder.decoder_pred.{p}": Move("head.{p}", channels_first),
    }


def _check_positions(table: Tensor | None, config: ViTConfig, width: int) -> None:
    """The decoder's positions are fixed, and computed here."""
    if table is None or table.is_meta:
        return
    body = sincos_positions(width, patch_grid(config.image_size, config.patch_size)).roll(width // 2, dims=1)
    expected = torch.cat([torch.zeros(1, width), body])
    equal = table.shape[1:] == expected.shape and torch.allclose(table[0].float().cpu(), expected, atol=1e-3)
    check_supported(equal, "a decoder whose positions are not sines and cosines of the grid")


def _with_rows_first(key: str, weight: Tensor) -> Tensor:
    """The first half of a position's features is for columns in transformers, and for rows here: so all that is written
    into the decoder's tokens, and read from them, swaps its halves."""
    for pattern, axis in ((INTO_TOKENS, 0), (FROM_TOKENS, 1)):
        if re.fullmatch(pattern, key):
            weight = weight.roll(weight.shape[axis] // 2, dims=axis)
    return weight
