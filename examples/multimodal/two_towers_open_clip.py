"""Models of open_clip on our two towers, with equal outputs: a directory with an open_clip_config.json."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import timm
import torch
from jaxtyping import Shaped
from torch import Tensor

from core import EncoderConfig, Move, Pool, PositionResize, UserError, convert
from core.checkpoints.files import plain_state, read_state
from core.checkpoints.keys import KeyMap
from core.files import read_json
from core.models.hub import loading, local_folder, settings_folder
from core.sparse import Causal
from text import TextConfig
from vision import Preprocess, ViTConfig, from_timm

from .two_towers import TwoTowers, TwoTowersConfig
from .two_towers_hf import build

CONFIG = "open_clip_config.json"
WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)  # of CLIP's images, where the config names none
CROPS = {"shortest": "center", "squash": "squash", "longest": "border"}
POOLS: dict[str, Pool] = {"tok": "cls", "avg": "mean"}
OF_TRAINING = ("patch_dropout", "output_tokens", "timm_model_pretrained", "timm_drop", "timm_drop_path", "pad_id")
"""Settings that change nothing in what a trained model returns."""

LAYER = "encoder.blocks.{i}"
State = dict[str, Shaped[Tensor, "..."]]


def _transposed(projection: Tensor) -> Tensor:
    return projection.T


def _no_bias(projection: Tensor) -> Tensor:
    return projection.new_zeros(projection.shape[1])


BLOCK: KeyMap = {
    f"transformer.resblocks.{{i}}.{theirs}": f"{LAYER}.{ours}"
    for theirs, ours in {
        "ln_1.{p}": "attention_norm.{p}",
        "attn.in_proj_weight": "attention.qkv.weight",
        "attn.in_proj_bias": "attention.qkv.bias",
        "attn.out_proj.{p}": "attention.out.{p}",
        "ls_1.gamma": "attention_branch.scale",
        "ln_2.{p}": "mlp_norm.{p}",
        "mlp.c_fc.{p}": "mlp.up.{p}",
        "mlp.c_proj.{p}": "mlp.down.{p}",
        "ls_2.gamma": "mlp_branch.scale",
    }.items()
}
IMAGE: KeyMap = {
    **BLOCK,
    "class_embedding": Move("embed.class_token", lambda token: token[None, None]),
    "positional_embedding": "embed.positions.weight",
    "conv1.{p}": "embed.projection.{p}",
    "ln_pre.{p}": "encoder.input_norm.{p}",
    "proj": Move("head.weight", _transposed),
    ("proj",): Move("head.bias", _no_bias),
}
TEXT: KeyMap = {
    **BLOCK,
    "token_embedding.weight": "embed.words.weight",
    "positional_embedding": "embed.positions.weight",
    "ln_final.{p}": "encoder.final_norm.{p}",
    "text_projection": Move("head.out.weight", _transposed),
    ("text_projection",): Move("head.out.bias", _no_bias),
    "text_projection.{p}": "head.out.{p}",
    "attn_mask": None,
}


class Settings:
    """A table of a config: each entry is read once, and what is left over is refused by name."""

    def __init__(self, name: str, table: Any):
        self.name, self.table = name, dict(table or {})

    def take(self, key: str, default: Any = None) -> Any:
        value = self.table.pop(key, default)
        return default if value is None else value

    def end(self) -> None:
        """Refuse what was not read, unless it is switched off."""
        rest = [key for key, value in self.table.items() if value and key not in OF_TRAINING]
        if rest:
            raise UserError(f"from_open_clip does not support {rest[0]} = {self.table[rest[0]]!r} of {self.name}.")


def from_open_clip(source: str | Path, filler: int) -> TwoTowers:
    """The two towers of a model in open_clip's format: ViTs, also those of timm, and open_clip's own text towers.

    source: a name on the hub, or a local directory.
    filler: the padding token of the tokenizer, which SigLIP's texts are filled up with.
    """
    file = read_json(settings_folder(source) / CONFIG)
    whole = Settings("model_cfg", file.get("model_cfg"))
    image, text = (Settings(name, whole.take(name)) for name in ("vision_cfg", "text_cfg"))
    width, quick = whole.take("embed_dim", 512), whole.take("quick_gelu", False)
    sigmoid = whole.take("init_logit_bias") is not None
    for name in ("custom_text", "init_logit_scale"):  # which shape the weights have, they say themselves
        whole.take(name)
    whole.end()
    text_config = _text(text, width, quick, filler)
    how = _preprocess(Settings("preprocess_cfg", file.get("preprocess_cfg")))
    read_image = _timm_tower if "timm_model_name" in image.table else _image_tower
    read_weights = read_image(image, width, quick)
    weights = plain_state(read_state(local_folder(source), WEIGHTS), wanted=())
    image_config, image_weights = read_weights(_under(weights, "visual."))
    own = _under(weights, "text.") or {
        key: tensor for key, tensor in weights.items() if not key.startswith(("visual.", "logit_"))
    }
    config = TwoTowersConfig(image=replace(image_config, preprocess=how), text=text_config, sigmoid=sigmoid)
    return build(config, image_weights, convert(own, TEXT), weights, take=True)


Tower = Callable[[State], tuple[ViTConfig, State]]
"""The config of an image tower and its weights in our form, from those of open_clip."""


def _image_tower(table: Settings, width: int, quick: bool) -> Tower:
    dim, layers = table.take("width", 768), table.take("layers", 12)
    if not isinstance(layers, int):
        raise UserError("from_open_clip takes ViTs, not a ResNet (vision_cfg.layers).")
    pool = table.take("pool_type", "tok")
    if pool not in POOLS:
        raise UserError(f"from_open_clip does not support pool_type = {pool!r} of vision_cfg.")
    if (positions := table.take("pos_embed_type", "learnable")) != "learnable":
        raise UserError(f"from_open_clip does not support pos_embed_type = {positions!r} of vision_cfg.")
    after_pool = table.take("final_ln_after_pool", False) or pool == "tok"  # of one token it is the same
    size, patch = table.take("image_size", 224), table.take("patch_size", 16)
    heads = dim // table.take("head_width", 64)
    config = ViTConfig(
        image_size=size if isinstance(size, int) else (size[0], size[1]),
        patch_size=patch if isinstance(patch, int) else (patch[0], patch[1]),
        classes=width,
        patch_bias=False,
        position_resize=PositionResize(antialias=True),
        pool=POOLS[pool],
        head_norm=after_pool,
        encoder=_encoder(table, dim, layers, heads, quick, input_norm=not table.take("no_ln_pre", False)),
    )
    config = replace(config, encoder=replace(config.encoder, final_norm=not after_pool))
    table.end()
    keys = {**IMAGE, "ln_post.{p}": "head_norm.{p}" if after_pool else "encoder.final_norm.{p}"}
    return lambda weights: (config, convert(weights, keys))


def _timm_tower(table: Settings, width: int, quick: bool) -> Tower:
    name, pool = table.take("timm_model_name"), table.take("timm_pool", "avg")
    how = table.take("timm_proj", "linear")
    table.take("image_size"), table.take("timm_proj_bias")
    if how not in ("", "none", "linear"):
        raise UserError(f"from_open_clip does not support timm_proj = {how!r} of vision_cfg.")
    table.end()
    with loading(name):
        module = timm.create_model(name, num_classes=width if how == "" else 0, global_pool=pool)
        from_timm(module)  # a trunk that is not supported is refused before weights are read

    def read(weights: State) -> tuple[ViTConfig, State]:
        module.load_state_dict(_under(weights, "trunk."))
        tower = from_timm(module)
        found = dict(tower.state_dict())
        head = {key.removeprefix("head.proj."): tensor for key, tensor in weights.items() if key.startswith("head.")}
        if how != "linear":
            return tower.config, found
        head.setdefault("bias", torch.zeros(width))
        return replace(tower.config, classes=width), found | {f"head.{name}": tensor for name, tensor in head.items()}

    return read


def _text(table: Settings, width: int, quick: bool, filler: int) -> TextConfig:
    if name := table.take("hf_model_name"):
        raise UserError(f"from_open_clip does not support the text tower {name!r} of transformers (hf_model_name).")
    size, pool, causal = (
        table.take("vocab_size", 49_408),
        table.take("pool_type", "argmax"),
        not table.take("no_causal_mask", False),
    )
    end, named = table.take("eos_id", 2), table.take("hf_tokenizer_name")
    # The highest token id ends a text in CLIP's own vocabulary.
    ends = {"argmax": None if named else size - 1, "eos": end}
    if (causal and ends.get(pool) is None) or (not causal and pool != "last"):
        kind = "causal" if causal else "not causal"
        raise UserError(f"from_open_clip does not support pool_type = {pool!r} of a text_cfg that is {kind}.")
    for name in ("tokenizer_kwargs", "tokenizer_mode", "hf_proj_type", "hf_pooler_type", "hf_model_pretrained"):
        table.take(name)
    table.take("proj_bias")
    projects = table.take("proj_type", "linear") != "none"
    dim, layers, heads = table.take("width", 512), table.take("layers", 12), table.take("heads", 8)
    config = TextConfig(
        vocab_size=size,
        max_length=table.take("context_length", 77),
        embedding_norm=False,
        end_token=ends[pool] if causal else None,
        filler=None if causal else filler,
        pool="last",
        head="classes" if projects else "none",
        classes=width,
        head_dense=False,
        encoder=_encoder(table, dim, layers, heads, quick, patterns=Causal() if causal else None),
    )
    table.end()
    return config


def _encoder(table: Settings, dim: int, layers: int, heads: int, quick: bool, **own: Any) -> EncoderConfig:
    approximate = Settings(f"act_kwargs of {table.name}", table.take("act_kwargs"))
    tanh = approximate.take("approximate", "none") == "tanh"
    approximate.end()
    norm = Settings(f"norm_kwargs of {table.name}", table.take("norm_kwargs"))
    config = EncoderConfig(
        dim=dim,
        depth=layers,
        heads=heads,
        mlp_dim=int(dim * table.take("mlp_ratio", 4.0)),
        activation="quick_gelu" if quick else "gelu_tanh" if tanh else "gelu",
        norm_eps=norm.take("eps", 1e-5),
        layer_scale=table.take("ls_init_value"),
        **own,
    )
    norm.end()
    return config


def _preprocess(table: Settings) -> Preprocess:
    how = table.take("resize_mode", "shortest")
    if how not in CROPS:
        raise UserError(f"from_open_clip does not support resize_mode = {how!r} of preprocess_cfg.")
    config = Preprocess(
        mean=tuple(map(float, table.take("mean", MEAN))),
        std=tuple(map(float, table.take("std", STD))),
        interpolation=table.take("interpolation", "bicubic"),
        crop_mode=CROPS[how],
    )
    for name in ("size", "mode", "fill_color"):
        table.take(name)
    table.end()
    return config


def _under(weights: State, prefix: str) -> State:
    return {key.removeprefix(prefix): tensor for key, tensor in weights.items() if key.startswith(prefix)}
