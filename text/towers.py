"""The text towers of CLIP and SigLIP in transformers: their config, and the names of their weights."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from core import EncoderConfig, Move, convert, load
from core.checkpoints.keys import KeyMap, unfilled
from core.models.stock import activation_of, check_supported
from core.sparse import Causal

from .hf_keys import LAYER
from .model import TextConfig, TextEncoder

TOWERS = ("CLIPTextModel", "CLIPTextModelWithProjection", "SiglipTextModel", "Siglip2TextModel")
"""Classes of transformers."""


def _no_bias(projection: Tensor) -> Tensor:
    return projection.new_zeros(len(projection))


KEYS: KeyMap = {
    "embeddings.token_embedding.weight": "embed.words.weight",
    "embeddings.position_embedding.weight": "embed.positions.weight",
    (
        "encoder.layers.{i}.self_attn.q_proj.{p}",
        "encoder.layers.{i}.self_attn.k_proj.{p}",
        "encoder.layers.{i}.self_attn.v_proj.{p}",
    ): f"{LAYER}.attention.qkv.{{p}}",
    "encoder.layers.{i}.self_attn.out_proj.{p}": f"{LAYER}.attention.out.{{p}}",
    "encoder.layers.{i}.layer_norm1.{p}": f"{LAYER}.attention_norm.{{p}}",
    "encoder.layers.{i}.layer_norm2.{p}": f"{LAYER}.mlp_norm.{{p}}",
    "encoder.layers.{i}.mlp.fc1.{p}": f"{LAYER}.mlp.up.{{p}}",
    "encoder.layers.{i}.mlp.fc2.{p}": f"{LAYER}.mlp.down.{{p}}",
    "final_layer_norm.{p}": "encoder.final_norm.{p}",
    "head.{p}": "head.out.{p}",  # SigLIP's
    "text_projection.weight": "head.out.weight",  # CLIP's, which has no bias
    ("text_projection.weight",): Move("head.out.bias", _no_bias),
    "embeddings.position_ids": None,
}
VOCABULARY = 49_408  # tokens of OpenAI's CLIP
LEGACY_END = 2  # in configs of CLIP before transformers 4.31, which meant the last token of the vocabulary


def read_tower(stock: Any, kind: str, weights: Mapping[str, Tensor], *, take: bool) -> TextEncoder:
    """The text encoder of a class of transformers, its config and its weights; the output is in the joint space where
    there is a projection to it. take: as for `load`."""
    plain = {key.removeprefix("text_model."): tensor for key, tensor in weights.items()}
    config = tower_config(stock, kind)
    model = unfilled(lambda: TextEncoder(config))
    load(model, convert(plain, KEYS), take=take)
    return model.eval()


def tower_config(stock: Any, kind: str) -> TextConfig:
    """Our config for that of one of `TOWERS`."""
    if kind.startswith("Siglip"):
        return siglip_text(stock, stock.projection_size)
    return clip_text(stock, stock.projection_dim if kind.endswith("WithProjection") else 0)


def clip_text(stock: Any, classes: int = 0) -> TextConfig:
    """Our config for a CLIPTextConfig. classes: the width of the joint space, if there is a projection to it."""
    # The greatest id, where others have not been added to OpenAI's vocabulary (textual inversion adds some).
    end = min(stock.vocab_size, VOCABULARY) - 1 if stock.eos_token_id == LEGACY_END else stock.eos_token_id
    check_supported(isinstance(end, int), "a CLIP text tower without one token that ends a text")
    return _tower(stock, classes, end_token=end, pool="last", patterns=Causal())


def siglip_text(stock: Any, classes: int = 0, filler: int | None = None) -> TextConfig:
    """Our config for a SiglipTextConfig. filler: as in `TextConfig`; the config's padding token if None."""
    filler = stock.pad_token_id if filler is None else filler
    check_supported(filler is not None, "a SigLIP text tower without a padding token")
    return _tower(stock, classes, filler=filler, pool="last", patterns=None)


def _tower(stock: Any, classes: int, *, patterns: Any, **own: Any) -> TextConfig:
    return TextConfig(
        vocab_size=stock.vocab_size,
        max_length=stock.max_position_embeddings,
        embedding_norm=False,
        head="classes" if classes else "none",
        classes=classes or 2,
        head_dense=False,
        encoder=EncoderConfig(
            dim=stock.hidden_size,
            depth=stock.num_hidden_layers,
            heads=stock.num_attention_heads,
            mlp_dim=stock.intermediate_size,
            activation=activation_of(stock.hidden_act),
            norm_eps=stock.layer_norm_eps,
            patterns=patterns,
            attention_dropout=float(stock.attention_dropout),
        ),
        **own,
    )
